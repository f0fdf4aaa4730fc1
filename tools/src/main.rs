//! The binary `saltern`.

use std::process::ExitCode;

fn main() -> ExitCode {
    saltern_tools::main()
}
