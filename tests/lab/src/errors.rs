//! Errors of every kind of call, by seed: the engine on a file system that fails, delays, shortens and changes what it is
//! asked for. Every ticket completes, no answer contradicts the model, and when the trouble is over the engine works on, or says for
//! good that it is read-only, and why.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use saltern::{Config, Durability, Engine, Integrity, Layout};
use saltern_power::trouble::{Call, Rule, Trouble};
use saltern_power::{Lab, Served};
use saltern_tests::config;

use crate::child::THROUGH;
use crate::context::Context;
use crate::table::Row;
use crate::world::{Tolerance, World};

/// Keys of a cell, and rounds of its workload in trouble.
const KEYS: u32 = 60;
const ROUNDS: (u64, u64) = (40, 400);

/// Times the rounds are done at most until a trouble was made: by chance it may meet none of the few calls of a cell.
const TRIES: usize = 20;

/// A million calls.
const ALL: u32 = 1_000_000;

/// Longer than the deadlines of the cells that are about them.
const LATE: Duration = Duration::from_millis(900);

/// Kinds of trouble, as often as they come.
#[derive(Debug, Clone)]
struct Cell {
    rules: Vec<Rule>,
    durability: Durability,
    layout: Layout,
    deadline: Duration,
}

fn rule(call: Call, trouble: Trouble, share: f64) -> Rule {
    Rule { call, trouble, per_million: (f64::from(ALL) * share) as u32 }
}

fn cells() -> Vec<Cell> {
    use {Call as C, Errno as E};
    let error = |errno: Errno| Trouble::Error(errno as i32);
    let delay = Trouble::Delay(Duration::from_millis(20));
    let kinds: [(Call, f64, &[Trouble]); 10] = [
        (C::Read, 0.2, &[error(E::EIO), error(E::EINTR), Trouble::Short, Trouble::Flip, delay]),
        (C::Write, 0.2, &[error(E::EIO), error(E::ENOSPC), error(E::EDQUOT), error(E::EINTR), Trouble::Flip, delay]),
        (C::Sync, 0.05, &[error(E::EIO), error(E::ENOSPC), error(E::EDQUOT), error(E::EINTR), delay]),
        (C::Create, 0.2, &[error(E::EIO), error(E::ENOSPC), error(E::EDQUOT), error(E::EINTR), delay]),
        (C::Rename, 0.2, &[error(E::EIO), error(E::ENOSPC), error(E::EDQUOT), error(E::EINTR), delay]),
        (C::Unlink, 0.3, &[error(E::EIO), error(E::EINTR), delay]),
        (C::Open, 0.3, &[error(E::EIO), error(E::EMFILE), error(E::EINTR), delay]),
        (C::Stat, 0.1, &[error(E::EIO), error(E::EINTR), delay]),
        (C::Attribute, 0.2, &[error(E::EIO), error(E::ENOSPC), error(E::EDQUOT), error(E::EINTR), delay]),
        (C::Room, 0.3, &[error(E::EIO), error(E::EINTR), delay]),
    ];
    let cell = |rules: Vec<Rule>, number: usize| Cell {
        rules,
        durability: [Durability::None, Durability::Full, Durability::Data][number % 3],
        layout: [Layout::Fs, Layout::NixlSharded][number % 2],
        deadline: Duration::from_secs(20),
    };
    let mut cells = Vec::new();
    for (call, share, troubles) in kinds {
        for trouble in troubles {
            let durabilities: &[usize] = if call == Call::Sync { &[1, 2, 4] } else { &[0, 1] };
            cells.extend(durabilities.iter().map(|number| cell(vec![rule(call, *trouble, share)], *number)));
        }
        // So late that the deadline answers: the slot, its buffer and its file stay with the kernel.
        cells.push(Cell { deadline: LATE / 3, ..cell(vec![rule(call, Trouble::Delay(LATE), 0.08)], 1) });
    }
    // A little of everything.
    for number in 0..6 {
        let of = |call| rule(call, error([E::EIO, E::ENOSPC][number % 2]), 0.02);
        let mut rules: Vec<_> =
            Call::ALL.into_iter().filter(|call| *call != Call::Sync || number >= 4).map(of).collect();
        rules.extend(Call::ALL.map(|call| rule(call, delay, 0.02)));
        cells.push(cell(rules, number));
    }
    cells
}

/// A directory through which all calls go, and its trouble.
struct Stage {
    served: Served,
    at: PathBuf,
    // The mount point lies in it.
    _lab: Lab,
}

impl Stage {
    fn new(cx: &Context) -> Result<Self, saltern_power::Error> {
        let lab = cx.lab(&[])?;
        let (root, at) = (lab.dir("below")?, lab.dir("through")?);
        let served = Served::start(&cx.role(THROUGH), [&root, &at].map(OsString::from))?;
        Ok(Self { served, at, _lab: lab })
    }
}

/// All cells.
pub fn run(cx: &Context) -> Row {
    let mut row = Row::new("errors, delays, short reads and flipped bits of each kind of call (FUSE)");
    let stage = match Stage::new(cx) {
        Ok(stage) => stage,
        Err(error) => return row.stopped(&error),
    };
    for (number, cell) in cells().iter().enumerate() {
        let dir = stage.at.join(format!("volume-{number}"));
        let before = row.bad.len();
        row.cases += 1;
        let seed = cx.seed.wrapping_add(number as u64);
        match cell.run(cx, &stage.served, &dir, seed) {
            Ok((faults, bad)) => {
                row.faults += faults;
                if faults == 0 {
                    row.bad(format!("no trouble was made: {cell:?}"));
                }
                bad.into_iter().for_each(|bad| row.bad(bad));
            }
            Err(error) => row.bad(error),
        }
        for bad in &mut row.bad[before..] {
            *bad = format!("{:?}, {}, {}: {bad}", cell.durability, cell.layout, rules(&cell.rules));
        }
    }
    open_in_trouble(cx, &stage, &mut row);
    row.done()
}

fn rules(rules: &[Rule]) -> String {
    rules.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn base(dir: &Path, layout: Layout) -> Config {
    let mut config = config(dir);
    config.layout = layout;
    config.integrity = Integrity::Verify;
    config.segment_bytes = 64 << 10;
    config.pool_bytes = 4 << 20;
    // Files are opened again and again.
    config.open_files = Some(4);
    config
}

impl Cell {
    fn config(&self, dir: &Path) -> Config {
        let mut config = base(dir, self.layout);
        config.durability = self.durability;
        config
    }

    /// Whether the cell is about deadlines.
    fn is_late(&self) -> bool {
        self.deadline < LATE
    }

    /// Gives the number of troubles made, and what is bad.
    fn run(&self, cx: &Context, served: &Served, dir: &Path, seed: u64) -> Result<(u64, Vec<String>), String> {
        let text = |error: saltern_power::Error| error.to_string();
        let corrupt = self.rules.iter().any(|rule| rule.trouble == Trouble::Flip);
        let mut world = World::new(seed, KEYS, Tolerance { corrupt, ..Tolerance::default() });
        let mut hurried = self.config(dir);
        (hurried.store_deadline, hurried.load_deadline) = (self.deadline, self.deadline);
        let engine = Engine::open(hurried).map_err(|error| format!("open: {error}"))?;
        world.act(&engine, 10);
        let before = served.count().map_err(text)?.0;
        served.trouble(seed, &self.rules).map_err(text)?;
        let rounds = cx.times(ROUNDS.0, ROUNDS.1) as u32 / if self.is_late() { 2 } else { 1 };
        let mut faults = 0;
        for _ in 0..TRIES {
            world.act(&engine, rounds);
            faults = served.count().map_err(text)?.0 - before;
            if faults > 0 && (!corrupt || world.corrupt > 0) {
                break;
            }
        }
        served.trouble(seed, &[]).map_err(text)?;
        if corrupt && world.corrupt == 0 {
            world.bad.push(format!("{faults} times bits were flipped, and no load was answered with a wrong checksum"));
        }
        world.settle(&engine);
        if !self.is_late() {
            // With such a deadline a busy machine is trouble enough.
            world.lives_or_says_why(&engine);
            world.check(&engine, dir, self.layout);
        }
        engine.close();
        let engine = Engine::open(self.config(dir)).map_err(|error| format!("open again: {error}"))?;
        world.check_opened(&engine, dir, self.layout);
        world.act(&engine, 5);
        world.lives_or_says_why(&engine);
        world.check(&engine, dir, self.layout);
        if world.answers.0 == 0 {
            world.bad.push("nothing was answered".into());
        }
        Ok((faults, std::mem::take(&mut world.bad)))
    }
}

/// Opening on a file system in trouble: an engine or an error, and nothing is lost by it.
fn open_in_trouble(cx: &Context, stage: &Stage, row: &mut Row) {
    let dir = stage.at.join("opened-in-trouble");
    let mut world = World::new(cx.seed, KEYS, Tolerance::default());
    let open = || Engine::open(base(&dir, Layout::Fs));
    match open() {
        Ok(engine) => world.act(&engine, 20),
        Err(error) => return row.bad(format!("open: {error}")),
    }
    let made = || stage.served.count().map_or(0, |count| count.0);
    let before = made();
    let mut listings = 0;
    for (number, call) in Call::ALL.into_iter().cycle().take(cx.times(44, 440) as usize).enumerate() {
        row.cases += 1;
        let rules = [rule(call, Trouble::Error(Errno::EIO as i32), 0.05 + 0.1 * (number % 4) as f64)];
        if let Err(error) = stage.served.trouble(cx.seed.wrapping_add(number as u64), &rules) {
            return row.bad(error);
        }
        let before = made();
        // Whatever it says, it says it. Only opening lists directories, so it goes on until a listing has failed.
        for _ in 0..TRIES {
            drop(open());
            if call != Call::List || made() > before {
                break;
            }
        }
        listings += if call == Call::List { made() - before } else { 0 };
    }
    if listings == 0 {
        row.bad("no listing has failed while an engine opened");
    }
    if let Err(error) = stage.served.trouble(0, &[]) {
        return row.bad(error);
    }
    row.faults += made() - before;
    match open() {
        Ok(engine) => world.check_opened(&engine, &dir, Layout::Fs),
        Err(error) => row.bad(format!("open after trouble: {error}")),
    }
    world.bad.into_iter().for_each(|bad| row.bad(format!("opened in trouble: {bad}")));
}
