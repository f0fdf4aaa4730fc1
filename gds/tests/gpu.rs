//! On a real GPU: bytes verified on the device, in every way that the engine has. Where there is no GPU each test says so and is
//! skipped; `SALTERN_GPU=N` makes it GPU N, and a missing one a failure.

mod common;

use std::sync::Arc;

use common::{key, payload};
use saltern::device::{DeviceOptions, Route, RouteChoice};
use saltern::{Buffer, Config, Engine, Error, Integrity};
use saltern_gds::{CudaDevice, CudaOptions, HostKind, HostMemory};
use tempfile::TempDir;

/// The GPU, or `None` where there is none and none is asked for.
fn gpu() -> Option<CudaDevice> {
    let wanted = std::env::var("SALTERN_GPU").ok();
    let ordinal = wanted.as_deref().map_or(0, |text| text.parse().expect("SALTERN_GPU is the number of a GPU"));
    let mut options = CudaOptions::from_env();
    options.helper = options.helper.or_else(|| Some(env!("CARGO_BIN_EXE_saltern-gds-probe").into()));
    match CudaDevice::open(ordinal, options) {
        Ok(device) => Some(device),
        Err(error) if wanted.is_some() => panic!("SALTERN_GPU is set, and {error}"),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// A directory below `SALTERN_TEST_DIR`, or on the disk of the build.
fn dir() -> TempDir {
    match std::env::var_os("SALTERN_TEST_DIR") {
        Some(base) => tempfile::tempdir_in(base).expect("a directory"),
        None => common::dir(),
    }
}

fn engine(dir: &TempDir, device: &CudaDevice, integrity: Integrity, route: RouteChoice) -> Engine {
    let mut config = Config::new(dir.path());
    config.shards = 2;
    config.integrity = integrity;
    let engine = Engine::open(config).expect("open");
    let mut options = DeviceOptions::default();
    options.route = route;
    engine.attach_device(Arc::new(device.clone()), options).expect("attach");
    engine
}

const SIZES: [usize; 9] = [1, 4095, 4096, 64 << 10, (1 << 20) + 1, 4 << 20, (4 << 20) + 4097, 12_345_678, 32 << 20];

#[test]
fn objects_come_back_byte_for_byte() {
    let Some(device) = gpu() else { return };
    for integrity in Integrity::ALL {
        let dir = dir();
        let engine = engine(&dir, &device, integrity, RouteChoice::Pipeline);
        let slices: Vec<_> = SIZES.iter().map(|bytes| device.alloc(*bytes).expect("alloc")).collect();
        for (n, slice) in (0..).zip(&slices) {
            slice.write(&payload(n, slice.len())).expect("write");
        }
        let batch = (0..).zip(&slices).map(|(n, slice)| (key(n), slice.buffer().into())).collect();
        let report = engine.store(batch).wait();
        assert!(report.results.iter().all(Result::is_ok), "{:?}", report.results);
        // The host sees the same bytes, so what follows compares the device with the disk.
        for (n, bytes) in (0..).zip(SIZES) {
            let report = engine.load(vec![(key(n), Buffer::from(vec![0; bytes]))]).wait();
            let buffer = report.buffers.into_iter().next().flatten().expect("comes back");
            assert!(buffer.as_slice() == payload(n, bytes), "{bytes} bytes from the GPU, integrity {integrity}");
        }
        for slice in &slices {
            slice.write(&vec![0xee; slice.len()]).expect("write");
        }
        let batch = (0..).zip(&slices).map(|(n, slice)| (key(n), slice.buffer().into())).collect();
        let report = engine.load(batch).wait();
        assert!(report.results.iter().all(Result::is_ok), "{:?}", report.results);
        for (n, slice) in (0..).zip(&slices) {
            assert!(slice.read().expect("read") == payload(n, slice.len()), "{} bytes, {integrity}", slice.len());
        }
    }
}

#[test]
fn pages_are_scattered_and_gathered() {
    let Some(device) = gpu() else { return };
    let dir = dir();
    let engine = engine(&dir, &device, Integrity::Verify, RouteChoice::Pipeline);
    for (round, page) in [(0, 512), (1, 4096), (2, 65_536), (3, 10_000)] {
        let pages = 200;
        let heap = device.alloc(2 * pages * page).expect("alloc");
        let bytes = payload(round, pages * page);
        let parts: Vec<_> = (0..pages).rev().map(|at| 2 * at * page..(2 * at + 1) * page).collect();
        let mut content = vec![0xee; heap.len()];
        for (part, bytes) in parts.iter().zip(bytes.chunks(page)) {
            content[part.clone()].copy_from_slice(bytes);
        }
        heap.write(&content).expect("write");
        let report = engine.store(vec![(key(round), heap.parts(&parts, None).into())]).wait();
        assert!(matches!(report.results[..], [Ok(_)]), "{:?}", report.results);
        heap.write(&vec![0xee; heap.len()]).expect("write");
        let report = engine.load(vec![(key(round), heap.parts(&parts, None).into())]).wait();
        assert!(matches!(report.results[..], [Ok(_)]), "{:?}", report.results);
        assert!(heap.read().expect("read") == content, "pages of {page}, or bytes between them");
    }
}

#[test]
fn many_small_objects_and_few_large_ones_at_once() {
    let Some(device) = gpu() else { return };
    let dir = dir();
    let engine = engine(&dir, &device, Integrity::Store, RouteChoice::Pipeline);
    let bytes = |n: u32| if n.is_multiple_of(50) { 24 << 20 } else { 16 << 10 };
    let slices: Vec<_> = (0..500).map(|n| device.alloc(bytes(n)).expect("alloc")).collect();
    for (n, slice) in (0..).zip(&slices) {
        slice.write(&payload(n, slice.len())).expect("write");
    }
    let tickets: Vec<_> =
        (0..).zip(&slices).map(|(n, slice)| engine.store(vec![(key(n), slice.buffer().into())])).collect();
    assert!(tickets.into_iter().all(|ticket| ticket.wait().results[0].is_ok()));
    for round in 0..3 {
        for slice in &slices {
            slice.write(&vec![round; slice.len()]).expect("write");
        }
        let tickets: Vec<_> =
            (0..).zip(&slices).map(|(n, slice)| engine.load(vec![(key(n), slice.buffer().into())])).collect();
        assert!(tickets.into_iter().all(|ticket| ticket.wait().results[0].is_ok()));
        for (n, slice) in (0..).zip(&slices) {
            assert!(slice.read().expect("read") == payload(n, slice.len()), "object {n}, round {round}");
        }
    }
    assert_eq!(engine.status().devices[0].transit_used_bytes, 0, "slots are held");
}

#[test]
fn copies_wait_for_the_callers_stream() {
    let Some(device) = gpu() else { return };
    let dir = dir();
    let engine = engine(&dir, &device, Integrity::Off, RouteChoice::Pipeline);
    let slice = device.alloc(8 << 20).expect("alloc");
    slice.write(&payload(1, 8 << 20)).expect("write");
    // SAFETY: 0 is the default stream of every context.
    #[expect(unsafe_code, reason = "streams are named by number")]
    let fence = unsafe { device.fence(0) }.expect("a fence");
    let report = engine.store(vec![(key(1), slice.part(0..8 << 20, Some(fence)).into())]).wait();
    assert!(matches!(report.results[..], [Ok(_)]), "{:?}", report.results);
    let report = engine.load(vec![(key(1), Buffer::from(vec![0; 8 << 20]))]).wait();
    assert!(report.buffers[0].as_ref().expect("comes back").as_slice() == payload(1, 8 << 20));
}

#[test]
fn the_route_that_was_chosen_moves_the_right_bytes() {
    let Some(device) = gpu() else { return };
    let dir = dir();
    let engine = engine(&dir, &device, Integrity::Off, RouteChoice::Auto);
    match &engine.status().devices[0].routes[0].route {
        Route::Direct { by } => eprintln!("direct: {by}"),
        Route::Pipeline { why } => eprintln!("pipeline: {why}"),
        other => panic!("{other:?}"),
    }
    for (n, bytes) in (0..).zip(SIZES) {
        let slice = device.alloc(bytes).expect("alloc");
        slice.write(&payload(n, bytes)).expect("write");
        let report = engine.store(vec![(key(n), slice.buffer().into())]).wait();
        assert!(matches!(report.results[..], [Ok(_)]), "{:?}", report.results);
        slice.write(&vec![0xee; bytes]).expect("write");
        let report = engine.load(vec![(key(n), slice.buffer().into())]).wait();
        assert!(matches!(report.results[..], [Ok(_)]), "{:?}", report.results);
        assert!(slice.read().expect("read") == payload(n, bytes), "{bytes} bytes");
    }
}

#[test]
fn closing_an_engine_ends_its_copies() {
    let Some(device) = gpu() else { return };
    let dir = dir();
    let slices: Vec<_> = (0..64).map(|_| device.alloc(4 << 20).expect("alloc")).collect();
    for (n, slice) in (0..).zip(&slices) {
        slice.write(&payload(n, slice.len())).expect("write");
    }
    let first = engine(&dir, &device, Integrity::Store, RouteChoice::Pipeline);
    let tickets: Vec<_> =
        (0..).zip(&slices).map(|(n, slice)| first.store(vec![(key(n), slice.buffer().into())])).collect();
    first.close();
    let mut stored = Vec::new();
    for (n, ticket) in (0..).zip(tickets) {
        match &ticket.wait().results[0] {
            Ok(_) => stored.push(n),
            Err(Error::Closed) => {}
            Err(error) => panic!("{error}"),
        }
    }
    let second = engine(&dir, &device, Integrity::Verify, RouteChoice::Pipeline);
    for n in stored {
        let slice = &slices[n as usize];
        slice.write(&vec![0; slice.len()]).expect("write");
        let report = second.load(vec![(key(n), slice.buffer().into())]).wait();
        assert!(matches!(report.results[..], [Ok(_)]), "{:?}", report.results);
        assert!(slice.read().expect("read") == payload(n, slice.len()), "object {n} was acknowledged");
    }
}

#[test]
fn every_kind_of_host_memory_copies_the_right_bytes() {
    let Some(device) = gpu() else { return };
    let slice = device.alloc(16 << 20).expect("alloc");
    for kind in HostKind::ALL {
        let mut memory = HostMemory::alloc(&device, kind, 16 << 20).expect("alloc");
        memory.as_mut_slice().copy_from_slice(&payload(7, 16 << 20));
        memory.copy(&slice, true, 4 << 20, 3).expect("copy");
        assert!(slice.read().expect("read") == payload(7, 16 << 20), "{}", kind.name());
        memory.as_mut_slice().fill(0);
        memory.copy(&slice, false, 1 << 20, 1).expect("copy");
        assert!(memory.as_slice() == payload(7, 16 << 20), "{}", kind.name());
    }
}
