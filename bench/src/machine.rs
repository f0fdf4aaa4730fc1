//! What machine this is.

use std::fs;

use nix::sys::utsname::uname;

use crate::report::Machine;

/// Reads `/proc`; what it does not say is left empty.
pub fn describe() -> Machine {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = ["model name", "CPU implementer", "cpu model"].iter().find_map(|name| field(&cpus, name));
    let kernel = uname().map(|name| name.release().to_string_lossy().into_owned());
    Machine {
        cpu: cpu.unwrap_or("unknown").to_owned(),
        cores: cores(),
        kernel: kernel.unwrap_or_default(),
        memory_bytes: memory_bytes("MemTotal"),
    }
}

/// CPUs that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A line of `/proc/meminfo`, in bytes; 0 where it is missing.
pub fn memory_bytes(name: &str) -> u64 {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = field(&memory, name).and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let machine = describe();
        assert!(machine.cores > 0 && machine.memory_bytes > 1 << 20 && !machine.kernel.is_empty());
        assert!(memory_bytes("MemAvailable") <= machine.memory_bytes);
        assert_eq!(memory_bytes("no such line"), 0);
    }
}
