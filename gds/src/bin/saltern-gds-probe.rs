//! The helper program of a cuFile probe (see `Prober::helper`), for hosts that have no `saltern` command line beside them. The first
//! argument is the helper subcommand, as for that one.

fn main() {
    saltern_gds::helper_main(std::env::args_os().skip(2));
}
