//! `saltern import`: objects of an archive into a directory, through an engine.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::time::Instant;

use saltern::layout::wire;
use saltern::{Buffer, Config, Engine, Error, Layout, ObjectKey, StoreReport, Ticket, checksum};
use serde::Serialize;
use tar::{Archive, Entry};

use super::{Filter, HEAD, Head, KEY_RECORD, NOTE_BYTES_MAX, OBJECT_BYTES_MAX, SUM_RECORD, TAIL, Tail, VERSION};
use crate::apply::{ApplyArgs, DRY_RUN};
use crate::failure::{Failure, Outcome};
use crate::human;
use crate::layouts::{Choice, choice_parser, choose};
use crate::output::JsonArgs;
use crate::progress::Bar;

/// Bytes of stores in flight, at most.
const IN_FLIGHT_BYTES: usize = 64 << 20;

/// Most entries that are printed; the JSON has them all.
const SHOWN_MAX: usize = 20;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every object is compared with its checksum. What the directory has already stays as it is, so the same command goes on after an \
interruption. The directory is made where it does not exist; its layout may be another than the archive's. No engine may run on it.

Without --apply the whole archive is read and checked, and nothing is stored.

Exit codes: 0 done; 1 it could not be done, or the archive was cut short; 2 wrong usage; 3 done, without objects that are damaged or \
were refused.")]
pub(crate) struct Args {
    /// The directory
    dir: PathBuf,
    /// The archive; `-` is stdin
    file: PathBuf,
    /// How the directory's files are named [auto: as they are; in an empty directory as in the archive]
    #[arg(long, default_value = "auto", value_parser = choice_parser())]
    layout: Choice,
    #[command(flatten)]
    filter: Filter,
    /// Most bytes of objects in the directory; what would pass it is refused
    #[arg(long, value_name = "SIZE", value_parser = human::parse_size)]
    capacity: Option<u64>,
    #[command(flatten)]
    apply: ApplyArgs,
    #[command(flatten)]
    json: JsonArgs,
}

/// The JSON. Version 1 of the schema; fields may be added.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    dir: String,
    file: String,
    applied: bool,
    layout: Layout,
    archive_layout: Layout,
    /// Objects of the archive that were asked for, and their bytes.
    objects: u64,
    bytes: u64,
    stored: u64,
    stored_bytes: u64,
    /// Were in the directory already.
    present: u64,
    /// Not asked for.
    skipped: u64,
    problems: Vec<Problem>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Problem {
    entry: String,
    reason: String,
}

pub(crate) fn run(args: &Args) -> Result<Outcome, Failure> {
    args.json.check()?;
    let bar = Bar::new();
    let report = if args.file.as_os_str() == OsStr::new("-") {
        import(args, io::stdin().lock(), &bar)?
    } else {
        let failed = |error: &io::Error| Failure::new(format_args!("{}: {error}", args.file.display()));
        let file = File::open(&args.file).map_err(|error| failed(&error))?;
        let total = file.metadata().map_or(0, |metadata| metadata.len());
        import(args, Counted { inner: file, read: 0, total, bar: &bar }, &bar)?
    };
    drop(bar);
    args.json.finish(&report, || render(&report))?;
    Ok(if report.problems.is_empty() { Outcome::Clean } else { Outcome::Problems })
}

/// Tells of what was read.
struct Counted<'a> {
    inner: File,
    read: u64,
    total: u64,
    bar: &'a Bar,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.read += read as u64;
        self.bar.bytes("importing", self.read, self.total);
        Ok(read)
    }
}

/// What reading an archive comes to, without the time it took.
pub(crate) fn outline(args: &Args, input: impl Read) -> Result<String, String> {
    let report = import(args, input, &Bar::new()).map_err(|failure| failure.message)?;
    Ok(render(&Report { seconds: 0.0, ..report }))
}

fn import(args: &Args, input: impl Read, bar: &Bar) -> Result<Report, Failure> {
    let start = Instant::now();
    let failed = |error: io::Error| Failure::new(format_args!("{}: {error}", args.file.display()));
    let mut archive = Archive::new(BufReader::with_capacity(1 << 20, input));
    let mut entries = archive.entries().map_err(failed)?;
    let head = read_head(entries.next(), args)?;
    let layout = choose_layout(args, head.layout)?;
    let engine = args.apply.is_set().then(|| open(args, layout)).transpose()?;
    let report = Report {
        schema: 1,
        dir: args.dir.display().to_string(),
        file: args.file.display().to_string(),
        applied: args.apply.is_set(),
        layout,
        archive_layout: head.layout,
        objects: 0,
        bytes: 0,
        stored: 0,
        stored_bytes: 0,
        present: 0,
        skipped: 0,
        problems: Vec::new(),
        seconds: 0.0,
    };
    let mut taking =
        Taking { args, engine, layout, report, seen: Tail::default(), tickets: VecDeque::new(), in_flight: 0 };
    let mut tail = None;
    for entry in &mut entries {
        let mut entry = match entry {
            Ok(entry) => entry,
            Err(error) => return Err(taking.cut_short(&error.to_string())),
        };
        if entry.path_bytes() == TAIL.as_bytes() {
            tail = Some(read_note::<Tail>(&mut entry).map_err(|error| taking.cut_short(&error.to_string()))?);
            break;
        }
        taking.take(&mut entry)?;
        bar.count("importing", taking.seen.objects);
    }
    taking.settle(0)?;
    if tail != Some(taking.seen) {
        return Err(taking.cut_short("its end is missing"));
    }
    let Taking { engine, mut report, .. } = taking;
    if let Some(engine) = engine {
        engine.close();
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

fn read_head<R: Read>(first: Option<io::Result<Entry<'_, R>>>, args: &Args) -> Result<Head, Failure> {
    let wrong = |reason: &str| {
        Failure::new(format_args!("{}: {reason}", args.file.display())).hint("`saltern export` makes archives")
    };
    let foreign = || wrong("not an archive of saltern");
    let mut entry =
        first.and_then(Result::ok).filter(|entry| entry.path_bytes() == HEAD.as_bytes()).ok_or_else(foreign)?;
    let head: serde_json::Value = read_note(&mut entry).map_err(|_| foreign())?;
    match head["version"].as_u64() {
        Some(version) if version == u64::from(VERSION) => serde_json::from_value(head).map_err(|_| foreign()),
        Some(version) => Err(wrong(&format!("it is of version {version}, this program knows version {VERSION}"))),
        None => Err(foreign()),
    }
}

fn read_note<T: serde::de::DeserializeOwned>(entry: &mut impl Read) -> io::Result<T> {
    let mut text = Vec::new();
    entry.take(NOTE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// As asked for, or as the directory's files are named; where there are none, as in the archive.
fn choose_layout(args: &Args, archived: Layout) -> Result<Layout, Failure> {
    match args.layout {
        Choice::Given(layout) => Ok(layout),
        Choice::Auto if !args.dir.exists() => Ok(archived),
        Choice::Auto => {
            let is_empty = saltern::scan::sample_names(&args.dir, 1)?.is_empty();
            if is_empty { Ok(archived) } else { Ok(choose(&args.dir, Choice::Auto)?.0) }
        }
    }
}

fn open(args: &Args, layout: Layout) -> Result<Engine, Failure> {
    let mut config = Config::new(&args.dir);
    config.layout = layout;
    config.capacity_bytes = args.capacity;
    config.max_object_bytes = OBJECT_BYTES_MAX;
    config.pool_bytes = 2 * IN_FLIGHT_BYTES;
    Ok(Engine::open(config)?)
}

/// An archive being taken in.
struct Taking<'a> {
    args: &'a Args,
    engine: Option<Engine>,
    layout: Layout,
    report: Report,
    /// What the archive's end has to say.
    seen: Tail,
    tickets: VecDeque<(String, usize, Ticket<StoreReport>)>,
    in_flight: usize,
}

impl Taking<'_> {
    fn cut_short(&self, reason: &str) -> Failure {
        let what = format!("{}: cut short: {reason}", self.args.file.display());
        let taken = human::plural(self.report.stored, "object");
        Failure::new(what).hint(format!("{taken} were stored; with a whole archive the same command goes on"))
    }

    fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<(), Failure> {
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let bytes = entry.size();
        self.seen.objects += 1;
        self.seen.bytes += bytes;
        let (key, sum) = match labels(entry) {
            Ok(labels) => labels,
            Err(reason) => return self.refuse(name, reason),
        };
        if !self.args.filter.wants(&key) {
            self.report.skipped += 1;
            return Ok(());
        }
        if bytes > OBJECT_BYTES_MAX {
            return self.refuse(name, format!("{bytes} bytes are more than an object may have"));
        }
        let mut buffer = self.buffer(bytes as usize);
        if let Err(error) = entry.read_exact(buffer.bytes()) {
            return Err(self.cut_short(&error.to_string()));
        }
        if checksum(buffer.bytes()) != sum {
            return self.refuse(name, "its bytes are not those of its checksum".into());
        }
        if let Err(error) = self.layout.encode(&key) {
            return self.refuse(name, error.to_string());
        }
        self.report.objects += 1;
        self.report.bytes += bytes;
        self.store(name, key, buffer.into())
    }

    fn refuse(&mut self, entry: String, reason: String) -> Result<(), Failure> {
        self.report.problems.push(Problem { entry, reason });
        Ok(())
    }

    /// Memory that moves without a copy, where there is some.
    fn buffer(&self, bytes: usize) -> Memory {
        let pooled = self.engine.as_ref().filter(|_| bytes > 0).and_then(|engine| engine.pool().alloc(bytes).ok());
        pooled.map_or_else(|| Memory::Heap(vec![0; bytes]), Memory::Pool)
    }

    fn store(&mut self, name: String, key: ObjectKey, buffer: Buffer) -> Result<(), Failure> {
        let Some(engine) = &self.engine else { return Ok(()) };
        if engine.lookup_and_pin(std::slice::from_ref(&key)).wait().hits() > 0 {
            engine.unpin(&[key]);
            self.report.present += 1;
            return Ok(());
        }
        let bytes = buffer.len();
        self.in_flight += bytes;
        self.tickets.push_back((name, bytes, engine.store(vec![(key, buffer)])));
        self.settle(IN_FLIGHT_BYTES)
    }

    /// Waits until at most so many bytes are in flight.
    fn settle(&mut self, most: usize) -> Result<(), Failure> {
        while (self.in_flight > most || most == 0)
            && let Some((name, bytes, ticket)) = self.tickets.pop_front()
        {
            self.in_flight -= bytes;
            match ticket.wait().results.remove(0) {
                Ok(_) => {
                    self.report.stored += 1;
                    self.report.stored_bytes += bytes as u64;
                }
                // Those after it would not fit either, and what is on disk already is no reason to go on.
                Err(error @ Error::Full { .. }) => {
                    let stored = human::plural(self.report.stored, "object");
                    return Err(Failure::new(format_args!("{name}: {error}"))
                        .hint(format!("{stored} were stored; with more room the same command goes on")));
                }
                Err(error) => self.refuse(name, error.to_string())?,
            }
        }
        Ok(())
    }
}

enum Memory {
    Pool(saltern::PoolBuffer),
    Heap(Vec<u8>),
}

impl Memory {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Pool(buffer) => buffer,
            Self::Heap(bytes) => bytes,
        }
    }
}

impl From<Memory> for Buffer {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Pool(buffer) => buffer.into(),
            Memory::Heap(bytes) => bytes.into(),
        }
    }
}

/// The key and the checksum of an entry.
fn labels(entry: &mut Entry<'_, impl Read>) -> Result<(ObjectKey, u64), String> {
    let (mut key, mut sum) = (None, None);
    let records = entry.pax_extensions().map_err(|error| error.to_string())?;
    for record in records.into_iter().flatten() {
        let record = record.map_err(|error| error.to_string())?;
        let value = record.value().map_err(|error| error.to_string());
        match record.key() {
            Ok(KEY_RECORD) => {
                let text: String = serde_json::from_str(value?).map_err(|error| error.to_string())?;
                key = Some(wire::decode(&text).map_err(|error| error.to_string())?);
            }
            Ok(SUM_RECORD) => sum = Some(u64::from_str_radix(value?, 16).map_err(|error| error.to_string())?),
            _ => {}
        }
    }
    key.zip(sum).ok_or_else(|| "it has no key, or no checksum".to_owned())
}

fn render(report: &Report) -> String {
    let mut out = format!(
        "{}: {}, {}, of layout {}\n{}: layout {}\n",
        human::printable(&report.file),
        human::plural(report.objects, "object"),
        human::size(report.bytes),
        report.archive_layout,
        human::printable(&report.dir),
        report.layout,
    );
    let mut line = |count: u64, what: &str| {
        if count > 0 {
            out.push_str(&format!("{:>12}  {what}\n", human::count(count)));
        }
    };
    line(report.stored, "stored");
    line(report.present, "there already");
    line(report.skipped, "not asked for");
    line(report.problems.len() as u64, "damaged, or refused");
    if !report.problems.is_empty() {
        let shown = report.problems.iter().take(SHOWN_MAX).map(|problem| (&*problem.entry, &*problem.reason));
        out.push_str(&format!("\n{}", human::reasons("not taken", report.problems.len() as u64, shown)));
    }
    out.push_str(&if report.applied {
        format!("\n{} stored in {}\n", human::size(report.stored_bytes), human::seconds(report.seconds))
    } else {
        format!("\nThe archive is whole.\n{DRY_RUN}\n")
    });
    out
}
