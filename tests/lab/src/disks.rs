//! Errors of the device below a real file system: ext4 turns read-only, xfs shuts itself down. The engine works on or says
//! for good that it does not; after the file system was mounted again, nothing is wrong, and with durability `full` nothing
//! that was acknowledged is missing.

use std::time::Duration;

use nix::errno::Errno;
use saltern::{Config, Durability, Engine, Integrity, Layout};
use saltern_power::trouble::{Call, Rule, Trouble};
use saltern_power::{FileSystem, Lab};
use saltern_tests::config;

use crate::context::Context;
use crate::table::Row;
use crate::world::{Tolerance, World};

const KEYS: u32 = 60;
const ROUNDS: (u64, u64) = (30, 300);

#[derive(Debug, Clone, Copy)]
struct Cell {
    file_system: FileSystem,
    durability: Durability,
    rule: Rule,
}

fn cells() -> Vec<Cell> {
    let eio = Trouble::Error(Errno::EIO as i32);
    let rule = |call, trouble, per_million| Rule { call, trouble, per_million };
    let rules = [
        rule(Call::Write, eio, 100_000),
        rule(Call::Write, eio, 5_000),
        rule(Call::Read, eio, 200_000),
        rule(Call::Sync, eio, 100_000),
        rule(Call::Write, Trouble::Delay(Duration::from_millis(1500)), 5_000),
    ];
    let mut cells = Vec::new();
    for file_system in [FileSystem::Ext4, FileSystem::Xfs] {
        for rule in rules {
            let of = |durability| Cell { file_system, durability, rule };
            cells.extend([Durability::None, Durability::Full].map(of));
        }
    }
    cells
}

/// All cells.
pub fn run(cx: &Context) -> Row {
    let mut row = Row::new("errors of the device below ext4 and xfs, mounted again afterwards");
    let lab = match cx.lab(&[FileSystem::Ext4, FileSystem::Xfs]) {
        Ok(lab) => lab,
        Err(error) => return row.stopped(&error),
    };
    for (number, cell) in cells().iter().enumerate() {
        row.cases += 1;
        match cell.run(cx, &lab, cx.seed.wrapping_add(number as u64)) {
            Ok((faults, bad)) => {
                row.faults += faults;
                let told = format!("{}, {:?}, {}", cell.file_system, cell.durability, cell.rule);
                bad.into_iter().for_each(|bad| row.bad(format!("{told}: {bad}")));
            }
            Err(error) => row.bad(format!("{cell:?}: {error}")),
        }
    }
    if row.faults == 0 {
        row.bad("no trouble was made");
    }
    row.done()
}

impl Cell {
    fn config(&self, dir: &std::path::Path) -> Config {
        let mut config = config(dir);
        config.durability = self.durability;
        config.integrity = Integrity::Verify;
        config.segment_bytes = 64 << 10;
        config.pool_bytes = 4 << 20;
        config
    }

    fn run(&self, cx: &Context, lab: &Lab, seed: u64) -> Result<(u64, Vec<String>), String> {
        let text = |error: saltern_power::Error| error.to_string();
        let image = lab.make_image("troubled", self.file_system).map_err(text)?;
        let mut disk = lab.start_plain_disk(&image).map_err(text)?;
        let dir = disk.mount(self.file_system).map_err(text)?.join("volume");
        let mut world = World::new(seed, KEYS, Tolerance::default());
        let engine = Engine::open(self.config(&dir)).map_err(|error| format!("open: {error}"))?;
        world.act(&engine, 15);
        disk.served.trouble(seed, &[self.rule]).map_err(text)?;
        world.act(&engine, cx.times(ROUNDS.0, ROUNDS.1) as u32);
        world.date("in trouble");
        disk.served.trouble(seed, &[]).map_err(text)?;
        world.settle(&engine);
        world.lives_or_says_why(&engine);
        let is_dead = engine.status().volumes[0].read_only.is_some();
        if !is_dead {
            world.check(&engine, &dir, Layout::Fs);
        }
        world.date(if is_dead { "after trouble, read-only" } else { "after trouble" });
        engine.close();
        disk.unmount().map_err(text)?;
        let faults = disk.served.count().map_err(text)?.0;
        disk.mount(self.file_system).map_err(text)?;
        if is_dead {
            // What had no sync may be lost with the file system, and what was deleted may be back.
            world.lose(self.durability == Durability::Full);
        }
        let engine = Engine::open(self.config(&dir)).map_err(|error| format!("open again: {error}"))?;
        world.check_opened(&engine, &dir, Layout::Fs);
        world.date(if is_dead { "mounted again after it was read-only" } else { "mounted again" });
        world.act(&engine, 5);
        world.lives_or_says_why(&engine);
        world.check(&engine, &dir, Layout::Fs);
        engine.close();
        disk.unmount().map_err(text)?;
        Ok((faults, std::mem::take(&mut world.bad)))
    }
}
