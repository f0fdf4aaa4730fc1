//! Trouble on purpose, by seed: what a file system in user space answers instead of what it was asked for.
//!
//! The process that serves the file system takes commands on its standard input, a line each, and answers each with a line:
//!
//! ```text
//! seed NUMBER                    the choices that follow come from here
//! rule CALL TROUBLE PER_MILLION  of so many calls of a kind, as often; several rules of a kind are tried in turn
//! clear                          no rules any more
//! count                          answers with the troubles made so far, and those that are being made
//! ```
//! Troubles: `error:N` (an error number), `short`, `flip` (one bit), `delay:MS`.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Call {
    Read,
    Write,
    Sync,
    Create,
    Rename,
    Unlink,
    Open,
    Stat,
    Attribute,
    /// Listing a directory.
    List,
    /// Asking for the file system's room.
    Room,
}

impl Call {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Read,
        Self::Write,
        Self::Sync,
        Self::Create,
        Self::Rename,
        Self::Unlink,
        Self::Open,
        Self::Stat,
        Self::Attribute,
        Self::List,
        Self::Room,
    ];

    /// The name in commands and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Create => "create",
            Self::Rename => "rename",
            Self::Unlink => "unlink",
            Self::Open => "open",
            Self::Stat => "stat",
            Self::Attribute => "attribute",
            Self::List => "list",
            Self::Room => "room",
        }
    }
}

/// What is done to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It fails with this error number; nothing is done.
    Error(i32),
    /// Half of it is done.
    Short,
    /// One bit of its data is another.
    Flip,
    /// It takes this much longer.
    Delay(Duration),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Error(number) => write!(f, "error:{number}"),
            Self::Short => f.write_str("short"),
            Self::Flip => f.write_str("flip"),
            Self::Delay(time) => write!(f, "delay:{}", time.as_millis()),
        }
    }
}

impl FromStr for Trouble {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u32>().map_err(|error| format!("{text}: {error}"));
        match text.split_once(':') {
            None if text == "short" => Ok(Self::Short),
            None if text == "flip" => Ok(Self::Flip),
            Some(("error", value)) => Ok(Self::Error(number(value)?.cast_signed())),
            Some(("delay", value)) => Ok(Self::Delay(Duration::from_millis(number(value)?.into()))),
            _ => Err(format!("{text} is no trouble")),
        }
    }
}

/// So often this trouble for that kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The kind of call.
    pub call: Call,
    /// What is done to it.
    pub trouble: Trouble,
    /// How often, of a million.
    pub per_million: u32,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(' ');
        let (call, trouble, often) = match (words.next(), words.next(), words.next()) {
            (Some(call), Some(trouble), Some(often)) => (call, trouble, often),
            _ => return Err(format!("{text:?} is no rule")),
        };
        let call = Call::ALL.into_iter().find(|known| known.name() == call).ok_or(format!("{call} is no call"))?;
        let per_million = often.parse().map_err(|error| format!("{often}: {error}"))?;
        Ok(Self { call, trouble: trouble.parse()?, per_million })
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.call.name(), self.trouble, self.per_million)
    }
}

struct State {
    rng: SmallRng,
    rules: BTreeMap<Call, Vec<Rule>>,
}

/// The rules in force. Thread-safe.
pub struct Troubles {
    state: Mutex<State>,
    made: AtomicU64,
    delayed: AtomicU64,
}

impl Default for Troubles {
    fn default() -> Self {
        let state = State { rng: SmallRng::seed_from_u64(0), rules: BTreeMap::new() };
        Self { state: Mutex::new(state), made: AtomicU64::new(0), delayed: AtomicU64::new(0) }
    }
}

/// What a call has met. A delay counts as going on until this is dropped: when the call's effect is there.
pub struct Met<'a> {
    /// What is to be done to the call; a delay is over.
    pub trouble: Option<Trouble>,
    delayed: Option<&'a AtomicU64>,
}

impl Met<'_> {
    /// The error number to answer with.
    pub fn error(&self) -> Option<i32> {
        match self.trouble {
            Some(Trouble::Error(number)) => Some(number),
            _ => None,
        }
    }
}

impl Drop for Met<'_> {
    fn drop(&mut self) {
        if let Some(delayed) = self.delayed {
            delayed.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Troubles {
    /// What a call of this kind meets. Blocks for a delay.
    pub fn meet(&self, call: Call) -> Met<'_> {
        let drawn = {
            let State { rng, rules } = &mut *self.state.lock();
            let rules = rules.get(&call).into_iter().flatten();
            rules.copied().find(|rule| rng.random_ratio(rule.per_million, 1_000_000))
        };
        let Some(Rule { trouble, .. }) = drawn else { return Met { trouble: None, delayed: None } };
        self.made.fetch_add(1, Ordering::SeqCst);
        let Trouble::Delay(time) = trouble else { return Met { trouble: Some(trouble), delayed: None } };
        self.delayed.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(time);
        Met { trouble: None, delayed: Some(&self.delayed) }
    }

    /// A number by the seed.
    pub fn number(&self, below: usize) -> usize {
        self.state.lock().rng.random_range(0..below.max(1))
    }

    fn obey(&self, line: &str) -> Result<String, String> {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("seed", number) => {
                let seed = number.parse().map_err(|error| format!("{number}: {error}"))?;
                self.state.lock().rng = SmallRng::seed_from_u64(seed);
            }
            ("rule", rule) => {
                let rule: Rule = rule.parse()?;
                self.state.lock().rules.entry(rule.call).or_default().push(rule);
            }
            ("clear", "") => self.state.lock().rules.clear(),
            ("count", "") => {
                return Ok(format!("{} {}", self.made.load(Ordering::SeqCst), self.delayed.load(Ordering::SeqCst)));
            }
            _ => return Err(format!("{line:?} is no command")),
        }
        Ok("ok".into())
    }

    /// Says that the file system is there, and takes commands until standard input ends.
    ///
    /// # Errors
    /// When standard input or output are broken.
    pub fn take_commands(&self) -> io::Result<()> {
        let mut out = io::stdout();
        writeln!(out, "ready")?;
        out.flush()?;
        for line in io::stdin().lock().lines() {
            let answer = self.obey(line?.trim()).unwrap_or_else(|error| format!("error {error}"));
            writeln!(out, "{answer}")?;
            out.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_back_and_apply_by_seed() {
        for text in ["read error:5 1000000", "write delay:0 500000", "stat flip 1", "sync short 0"] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        assert!("read error:5".parse::<Rule>().is_err() && "eat error:5 1".parse::<Rule>().is_err());
        let draws = || {
            let troubles = Troubles::default();
            for command in ["seed 7", "rule read error:5 300000", "rule read flip 300000"] {
                assert_eq!(troubles.obey(command).unwrap(), "ok");
            }
            let drawn: Vec<_> = (0..100).map(|_| troubles.meet(Call::Read).trouble).collect();
            assert_eq!(troubles.meet(Call::Write).trouble, None);
            let made = drawn.iter().flatten().count();
            assert_eq!(troubles.obey("count").unwrap(), format!("{made} 0"));
            assert!(made > 20 && drawn.contains(&Some(Trouble::Flip)) && drawn.contains(&Some(Trouble::Error(5))));
            drawn
        };
        assert_eq!(draws(), draws());
    }
}
