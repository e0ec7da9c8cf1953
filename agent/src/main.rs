//! The `underpass` binary. Everything it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    underpass::cli::main()
}
