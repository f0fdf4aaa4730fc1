//! The Python module `saltern._saltern`: the engine for Python, and what the LMCache mounts are made of.
//!
//! `engine.rs` is the plain API, `gpu.rs` and `pages.rs` its memory of GPUs, `mount/` serves LMCache's L2 adapter interface, `connector.rs` its native connector
//! interface. The Python side (`python/saltern`) adds the classes that LMCache subclasses, types and documentation.

mod bell;
mod connector;
mod engine;
mod errors;
mod gpu;
mod handle;
mod keys;
mod listener;
mod memory;
mod mount;
mod options;
mod pages;

use pyo3::prelude::*;

/// Checks the options of a mount, given as JSON, without opening anything.
///
/// Raises ConfigError, which names the option.
#[pyfunction]
fn check_options(options_json: &str) -> PyResult<()> {
    let options = options::Options::parse(options_json).map_err(errors::ConfigError::new_err)?;
    let checked = options.without_gpus().and_then(|()| options.config()).and_then(|_| options.quotas());
    checked.map(drop).map_err(errors::ConfigError::new_err)
}

#[pymodule]
fn _saltern(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<keys::PyKey>()?;
    module.add_class::<engine::PyEngine>()?;
    module.add_class::<pages::Pages>()?;
    module.add_class::<pages::Registered>()?;
    module.add_class::<mount::Mount>()?;
    module.add_class::<connector::Connector>()?;
    module.add_function(wrap_pyfunction!(check_options, module)?)?;
    errors::register(module)
}
