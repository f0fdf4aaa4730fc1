//! `saltern completions` and `saltern man`.

use std::fs;
use std::process::Command;

use crate::common::{saltern, temp_dir};

const COMMANDS: [&str; 14] = [
    "bench",
    "recover",
    "usage",
    "quota",
    "evict",
    "doctor",
    "verify",
    "migrate",
    "clean",
    "export",
    "import",
    "top",
    "completions",
    "man",
];

#[test]
fn completions_know_every_command_and_bash_takes_them() {
    let dir = temp_dir();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = saltern(dir.path(), &["completions", shell]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        for command in COMMANDS {
            assert!(ran.stdout.contains(command), "{shell}: {command}");
        }
        assert!(ran.stdout.contains("nixl-sharded"), "{shell}: values of options");
    }
    assert_eq!(saltern(dir.path(), &["completions", "csh"]).code, 2);
    fs::write(dir.path().join("saltern.bash"), saltern(dir.path(), &["completions", "bash"]).stdout).unwrap();
    let complete = "set -eu; . ./saltern.bash; COMP_WORDS=(saltern ver); COMP_CWORD=1; \
                    _saltern saltern ver saltern; echo \"${COMPREPLY[@]}\"";
    let ran = Command::new("bash").args(["--norc", "-c", complete]).current_dir(dir.path()).output();
    match ran {
        Ok(ran) => assert_eq!(String::from_utf8_lossy(&ran.stdout).trim(), "verify", "{ran:?}"),
        Err(error) => eprintln!("skipped: there is no bash here: {error}"),
    }
}

#[test]
fn every_command_has_a_page() {
    let dir = temp_dir();
    let ran = saltern(dir.path(), &["man", "pages"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let page = |name: &str| fs::read_to_string(dir.path().join("pages").join(name)).unwrap();
    assert!(page("saltern.1").contains("KV caches"));
    for command in COMMANDS {
        let page = page(&format!("saltern-{command}.1"));
        assert!(page.starts_with(".ie") || page.contains(".TH"), "{command}: {page}");
        assert!(page.contains(command), "{command}");
    }
    let help = saltern(dir.path(), &["--help"]).stdout;
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
    }
    fs::write(dir.path().join("file"), "").unwrap();
    assert_eq!(saltern(dir.path(), &["man", "file/pages"]).code, 1);
}
