//! The corpus of the fuzzer, replayed, and changed a little at random: no parser panics, and what it takes it takes twice.
//! `tests/fuzz/run` looks for more.

use std::fs;
use std::path::Path;

use rand::Rng;
use saltern_tests::Seed;
use saltern_tests::parsers::{PARSERS, Parser};
use saltern_tools::fuzzing;

/// Those of the command line.
const TOOLS: [Parser; 2] = [("archive", fuzzing::archive), ("served", fuzzing::served)];

/// Changes of each file.
const CHANGES: usize = 2_000;

#[test]
fn no_parser_panics_on_the_corpus_or_near_it() {
    let seed = Seed::new("no_parser_panics_on_the_corpus_or_near_it");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut rng = seed.rng(0);
    for (name, parse) in PARSERS.into_iter().chain(TOOLS) {
        let files: Vec<_> =
            fs::read_dir(corpus.join(name)).expect("a corpus").map(|file| file.expect("readdir").path()).collect();
        assert!(!files.is_empty(), "{name} has no corpus");
        let contents: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).expect("read")).collect();
        for bytes in &contents {
            parse(bytes);
        }
        for _ in 0..CHANGES {
            let mut bytes = contents[rng.random_range(0..contents.len())].clone();
            for _ in 0..rng.random_range(1..=4) {
                let at = rng.random_range(0..=bytes.len());
                match rng.random_range(0..4) {
                    0 if at < bytes.len() => bytes[at] ^= 1 << rng.random_range(0..8),
                    1 if at < bytes.len() => drop(bytes.remove(at)),
                    2 => bytes.truncate(at),
                    _ => bytes.insert(at, rng.random()),
                }
            }
            parse(&bytes);
        }
    }
}
