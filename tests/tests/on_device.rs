//! The behaviour suite once more, on the software device: all memory that it hands to the engine plays memory of a device, so that
//! each byte goes through slots and copies, whose completions come in any order (`saltern_tests::config`).

#[path = "behaviour/main.rs"]
mod behaviour;

use behaviour::{gate, is_long, scratch};
