//! The GPU-direct path of saltern: the only crate that may know CUDA. Empty so far: no GPU code has landed.
