//! `saltern export`: objects of a directory into an archive.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use saltern::Layout;
use saltern::maintain::{Object, ObjectReader, last_uses};
use saltern::scan::{Found, survey};
use serde::Serialize;
use tar::{Builder, EntryType, Header};

use super::{Filter, HEAD, Head, KEY_RECORD, SUM_RECORD, TAIL, Tail, VERSION};
use crate::failure::{Failure, Outcome};
use crate::human;
use crate::keys::KeyParts;
use crate::layouts::{Choice, choice_parser, choose};
use crate::output::JsonArgs;
use crate::progress::Bar;

/// Objects that are read ahead of what is written.
const AHEAD: usize = 8;

/// Most objects that are printed; the JSON has them all.
const SHOWN_MAX: usize = 20;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Nothing in the directory is changed, and an engine may run on it. Objects are compared with their checksums as they are read; what is \
damaged stays out and is listed. The archive is a tar file with the payloads under their names, their keys and checksums in extended \
records, the oldest use first. It is written beside FILE and renamed when it is whole.

Exit codes: 0 done; 1 it could not be done; 2 wrong usage; 3 done, without objects that are damaged.")]
pub(crate) struct Args {
    /// The directory
    dir: PathBuf,
    /// The archive; `-` is stdout
    file: PathBuf,
    /// How the directory's files are named
    #[arg(long, default_value = "auto", value_parser = choice_parser())]
    layout: Choice,
    #[command(flatten)]
    filter: Filter,
    /// Replace the archive, if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    json: JsonArgs,
}

/// The JSON. Version 1 of the schema; fields may be added.
#[derive(Debug, Serialize)]
struct Report {
    schema: u32,
    dir: String,
    file: String,
    layout: Layout,
    objects: u64,
    bytes: u64,
    /// Went away while the others were read.
    gone: u64,
    damaged: Vec<Damaged>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Damaged {
    #[serde(flatten)]
    key: KeyParts,
    reason: String,
}

pub(crate) fn run(args: &Args) -> Result<Outcome, Failure> {
    args.json.check()?;
    let to_stdout = args.file.as_os_str() == OsStr::new("-");
    if to_stdout && args.json.is_stdout() {
        return Err(Failure::usage("both the archive and the JSON would go to stdout"));
    }
    let (layout, _) = choose(&args.dir, args.layout)?;
    let report = if to_stdout { write(args, layout, io::stdout().lock())? } else { write_file(args, layout)? };
    args.json.finish_beside(to_stdout, &report, || render(&report))?;
    Ok(if report.damaged.is_empty() { Outcome::Clean } else { Outcome::Problems })
}

/// Writes beside the file, and gives it its name when all is on disk.
fn write_file(args: &Args, layout: Layout) -> Result<Report, Failure> {
    let file = &args.file;
    let failed = |error: io::Error| Failure::new(format_args!("{}: {error}", file.display()));
    if !args.force && file.symlink_metadata().is_ok() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()).hint("--force replaces it"));
    }
    let mut part = file.clone().into_os_string();
    part.push(".part");
    let part = Path::new(&part);
    let out = File::create(part).map_err(failed)?;
    let written = write(args, layout, &out).and_then(|report| {
        out.sync_all().and_then(|()| std::fs::rename(part, file)).map_err(failed)?;
        Ok(report)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(part);
    }
    written
}

/// An object as it was read.
type Read<'a> = (&'a Found, saltern::Result<Option<Object>>);

fn write(args: &Args, layout: Layout, out: impl Write) -> Result<Report, Failure> {
    let start = Instant::now();
    let bar = Bar::new();
    let mut objects = survey(&args.dir, layout, 2, &|seen| bar.count("reading names", seen))?.objects;
    objects.retain(|object| args.filter.wants(&object.key));
    let uses = last_uses(&args.dir, layout);
    let used = |object: &Found| uses.get(&object.key).copied().unwrap_or(0).max(object.modified_ns);
    objects.sort_by_cached_key(|object| (used(object), object.key.chunk_hash().clone()));
    let reader = ObjectReader::open(&args.dir, layout)?;
    let mut report = Report {
        schema: 1,
        dir: args.dir.display().to_string(),
        file: args.file.display().to_string(),
        layout,
        objects: 0,
        bytes: 0,
        gone: 0,
        damaged: Vec::new(),
        seconds: 0.0,
    };
    let total = objects.iter().map(|object| object.bytes).sum();
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Read<'_>>(AHEAD);
        let (objects, reader) = (&objects, &reader);
        scope.spawn(move || {
            // Ends early when nobody takes them any more.
            objects.iter().all(|object| sender.send((object, reader.read(&object.key))).is_ok())
        });
        append_all(layout, out, receiver, &mut report, &|done| bar.bytes("exporting", done, total))
    })
    .map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::new("who reads the archive has gone away"),
        _ => Failure::new(format_args!("{}: {error}", args.file.display())),
    })?;
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

fn append_all(
    layout: Layout,
    out: impl Write,
    objects: Receiver<Read<'_>>,
    report: &mut Report,
    progress: &dyn Fn(u64),
) -> io::Result<()> {
    let mut archive = Builder::new(BufWriter::with_capacity(1 << 20, out));
    append_note(&mut archive, HEAD, &Head { version: VERSION, layout })?;
    for (found, read) in objects {
        let damaged = |reason: String| Damaged { key: KeyParts::of(&found.key), reason };
        match read {
            Ok(Some(object)) => {
                let name = layout.encode(&found.key).map_err(io::Error::other)?;
                append(&mut archive, &name, &KeyParts::of(&found.key).to_string(), &object)?;
                report.objects += 1;
                report.bytes += object.payload.len() as u64;
                progress(report.bytes);
            }
            Ok(None) => report.gone += 1,
            Err(error) => report.damaged.push(damaged(error.to_string())),
        }
    }
    append_note(&mut archive, TAIL, &Tail { objects: report.objects, bytes: report.bytes })?;
    archive.into_inner()?.flush()
}

fn append(archive: &mut Builder<impl Write>, name: &str, key: &str, object: &Object) -> io::Result<()> {
    let (key, sum) = (serde_json::to_string(key)?, format!("{:016x}", object.checksum));
    archive.append_pax_extensions([(KEY_RECORD, key.as_bytes()), (SUM_RECORD, sum.as_bytes())])?;
    let mut header = header(object.payload.len(), object.modified_ns / 1_000_000_000);
    archive.append_data(&mut header, name, &*object.payload)
}

fn append_note(archive: &mut Builder<impl Write>, name: &str, note: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(note)?;
    archive.append_data(&mut header(text.len(), 0), name, &*text)
}

fn header(bytes: usize, modified_s: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_size(bytes as u64);
    header.set_mtime(modified_s);
    header
}

fn render(report: &Report) -> String {
    let mut out = format!(
        "{}: {}, {} in {}\n",
        human::printable(&report.file),
        human::plural(report.objects, "object"),
        human::size(report.bytes),
        human::seconds(report.seconds),
    );
    if report.gone > 0 {
        out.push_str(&format!("{} went away meanwhile\n", human::plural(report.gone, "object")));
    }
    if !report.damaged.is_empty() {
        let rows: Vec<_> = report.damaged.iter().map(|damaged| (damaged.key.to_string(), &*damaged.reason)).collect();
        let shown = rows.iter().take(SHOWN_MAX).map(|(key, reason)| (&**key, *reason));
        out.push_str(&format!("\n{}", human::reasons("damaged, not in the archive", rows.len() as u64, shown)));
    }
    out
}
