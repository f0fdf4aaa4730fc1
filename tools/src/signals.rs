//! Ctrl-C: the first one asks the work to stop and clean up, the second one ends the process at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::{Failure, INTERRUPTED};

/// A flag that SIGINT, SIGTERM and SIGHUP set.
pub(crate) fn cancel_flag() -> Result<Arc<AtomicBool>, Failure> {
    let cancel = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: a signal first looks whether the flag was set before it.
        flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), cancel.clone())
            .and_then(|_| flag::register(signal, cancel.clone()))
            .map_err(|error| Failure::new(format_args!("signal {signal}: {error}")))?;
    }
    Ok(cancel)
}
