//! cuFile through the engine, on libraries of software: memory registered once, batches, files that are not direct, transfers that
//! fail, and compatibility mode. The library stops the process where a rule of cufile.h is broken.

mod common;

use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use common::{Fakes, config, key, machine, payload, small};
use saltern::device::{DeviceRange, Direction, Route, RouteChoice};
use saltern::{Engine, Error, Integrity};
use saltern_gds::{BATCH_MAX, CudaDevice, CudaOptions, DeviceSlice, DeviceSpan};
use tempfile::TempDir;

/// Libraries, and a machine on which cuFile could be direct.
struct World {
    fakes: Fakes,
    root: TempDir,
    dir: TempDir,
}

impl World {
    /// `None`, said, where there is no C compiler, or no O_DIRECT.
    fn new(libcufile: &[&str], root: &[&str]) -> Option<Self> {
        let fakes = Fakes::build(&[("cuda", "cuda", &[]), ("cufile", "cufile", libcufile)])?;
        let world = Self { fakes, root: machine(root), dir: common::dir() };
        let direct_io = Engine::open(config(world.dir.path())).expect("open").status().volumes[0].medium.direct_io;
        if !direct_io {
            eprintln!("skipped: this file system takes no O_DIRECT");
        }
        direct_io.then_some(world)
    }

    fn with_nvidia_fs(libcufile: &[&str]) -> Option<Self> {
        Self::new(libcufile, &["proc/modules", "proc/driver/nvidia-fs/version"])
    }

    fn gpu(&self) -> CudaDevice {
        self.gpu_with(|_| ())
    }

    fn gpu_with(&self, change: impl FnOnce(&mut CudaOptions)) -> CudaDevice {
        let mut options = CudaOptions::default();
        options.libcuda = Some(self.fakes.path("cuda"));
        options.libcufile = Some(self.fakes.path("cufile"));
        options.helper = Some(env!("CARGO_BIN_EXE_saltern-gds-probe").into());
        options.machine = saltern_gds::machine::Machine::at(self.root.path());
        change(&mut options);
        CudaDevice::open(0, options).expect("the software driver has one GPU")
    }

    fn engine(&self, gpu: &CudaDevice) -> Engine {
        let mut config = config(self.dir.path());
        config.integrity = Integrity::Off;
        let engine = Engine::open(config).expect("open");
        engine.attach_device(Arc::new(gpu.clone()), small()).expect("attach");
        engine
    }

    fn cufile(&self, symbol: &str) -> i32 {
        self.fakes.count("cufile", symbol)
    }

    /// That nothing of cuFile's is left when the engine is closed.
    fn assert_clean(&self) {
        let left = ["fake_files", "fake_slabs", "fake_batches_alive"].map(|symbol| self.cufile(symbol));
        assert_eq!(left, [0, 0, 0], "files, slabs and batches that are left");
    }
}

fn route(engine: &Engine) -> Route {
    engine.status().devices[0].routes[0].route.clone()
}

/// Stores parts of a block of the GPU's memory all at once, and loads them back, each right.
fn there_and_back(engine: &Engine, heap: &DeviceSlice, objects: usize) {
    let bytes = heap.len() / objects;
    let parts: Vec<_> = (0..objects).map(|n| heap.slice(n * bytes..(n + 1) * bytes)).collect();
    for (n, part) in (0..).zip(&parts) {
        part.write(&payload(n, bytes)).expect("write");
    }
    let batch = || (0..).zip(&parts).map(|(n, part)| (key(n), part.buffer())).collect();
    let stored = engine.store_from_device(batch()).wait();
    assert!(stored.results.iter().all(Result::is_ok), "{:?}", stored.results);
    heap.write(&vec![0xee; heap.len()]).expect("write");
    let loaded = engine.load_to_device(batch()).wait();
    assert!(loaded.results.iter().all(Result::is_ok), "{:?}", loaded.results);
    for (n, part) in (0..).zip(&parts) {
        assert!(part.read().expect("read") == payload(n, bytes), "object {n}");
    }
    assert_eq!(engine.status().devices[0].transit_used_bytes, 0, "slots are held");
}

const SIZES: [usize; 8] = [1, 4096, 5000, 64 << 10, 1 << 20, (1 << 20) + 1, 3_000_001, 8 << 20];

#[test]
fn where_a_probe_shows_it_objects_go_by_cufile() {
    let Some(world) = World::with_nvidia_fs(&[]) else { return };
    let gpu = world.gpu();
    let engine = world.engine(&gpu);
    assert_eq!(route(&engine), Route::Direct { by: "cuFile 1.13 over nvidia-fs, in batches".into() });
    let slices: Vec<_> = SIZES.iter().map(|bytes| gpu.alloc(*bytes).expect("alloc")).collect();
    for (n, slice) in (0..).zip(&slices) {
        slice.write(&payload(n, slice.len())).expect("write");
    }
    let copies = world.fakes.count("cuda", "fake_copied");
    let batch = |slices: &[saltern_gds::DeviceSlice]| {
        (0..).zip(slices).map(|(n, slice)| (key(n), slice.buffer().into())).collect()
    };
    let stored = engine.store(batch(&slices)).wait();
    assert!(stored.results.iter().all(Result::is_ok), "{:?}", stored.results);
    for slice in &slices {
        slice.write(&vec![0xee; slice.len()]).expect("write");
    }
    let loaded = engine.load(batch(&slices)).wait();
    assert!(loaded.results.iter().all(Result::is_ok), "{:?}", loaded.results);
    for (n, slice) in (0..).zip(&slices) {
        assert!(slice.read().expect("read") == payload(n, slice.len()), "{} bytes", slice.len());
    }
    // Only what is not whole blocks went through slots: the ends of four objects, there and back.
    assert_eq!(world.fakes.count("cuda", "fake_copied") - copies, 2 * 4, "copies through slots");
    drop((engine, stored, loaded));
    world.assert_clean();
}

#[test]
fn all_devices_of_a_process_share_the_one_library_that_it_may_open() {
    let Some(world) = World::with_nvidia_fs(&[]) else { return };
    // The library refuses parameters when its driver is open. As after reopening, or for a second GPU.
    for round in 0..2 {
        let gpu = world.gpu();
        let engine = world.engine(&gpu);
        assert!(matches!(route(&engine), Route::Direct { .. }), "round {round}: {:?}", route(&engine));
        let heap = gpu.alloc(4 << 20).expect("alloc");
        there_and_back(&engine, &heap, 4);
        assert!(world.cufile("fake_files") > 0, "round {round}: no file went by cuFile");
        engine.delete(&(0..4).map(key).collect::<Vec<_>>()).wait();
        engine.close();
        world.assert_clean();
    }
    let refused = world.gpu().compatibility_io().err().expect("a process has one mode").to_string();
    assert!(refused.contains("one mode"), "{refused}");
}

#[test]
fn where_it_is_not_direct_the_pipeline_is_used_and_says_why() {
    let Some(world) = World::with_nvidia_fs(&["-DNO_DRIVER"]) else { return };
    let engine = Engine::open(config(world.dir.path())).expect("open");
    let mut forced = small();
    forced.route = RouteChoice::Direct;
    let refused = engine.attach_device(Arc::new(world.gpu()), forced);
    assert!(
        matches!(&refused, Err(Error::Device { reason, .. }) if reason.contains("nvidia-fs is not loaded")),
        "{refused:?}"
    );
    assert!(engine.status().devices.is_empty());
    engine.attach_device(Arc::new(world.gpu()), small()).expect("the pipeline is always there");
    let route = route(&engine);
    assert!(matches!(&route, Route::Pipeline { why } if why.contains("nvidia-fs is not loaded")), "{route:?}");
}

#[test]
fn memory_is_registered_once_and_not_for_each_transfer() {
    let Some(world) = World::with_nvidia_fs(&[]) else { return };
    let gpu = world.gpu();
    let early = gpu.alloc(8 << 20).expect("alloc");
    let slab = gpu.slab(&early);
    assert!(!slab.is_registered() && slab.why_not().is_some_and(|why| why.contains("not open")));
    let engine = world.engine(&gpu);
    assert!(slab.is_registered() && slab.why_not().is_none(), "with the opening of cuFile");
    let late = gpu.alloc(1 << 20).expect("alloc");
    let other = gpu.slab(&late);
    assert!(other.is_registered(), "at once, where it is open");
    let moved = || (world.cufile("fake_moves"), world.cufile("fake_in_slabs"));
    let before = moved();
    for _ in 0..3 {
        there_and_back(&engine, &early, 32);
        engine.delete(&(0..32).map(key).collect::<Vec<_>>()).wait();
    }
    let after = moved();
    assert!(after.0 - before.0 >= 3 * 64 && after.0 - before.0 == after.1 - before.1, "{before:?} to {after:?}");
    assert_eq!((world.cufile("fake_slab_calls"), world.cufile("fake_slabs")), (2, 2), "registered once each");
    // Other memory goes as well, by itself.
    there_and_back(&engine, &gpu.alloc(1 << 20).expect("alloc"), 4);
    drop((other, late));
    assert_eq!(world.cufile("fake_slabs"), 1);
    drop((slab, early));
    engine.close();
    world.assert_clean();
    drop(gpu);
    let left = ["fake_registered", "fake_allocated", "fake_retained"].map(|symbol| world.fakes.count("cuda", symbol));
    assert_eq!(left, [0, 0, 0], "registrations, allocations and contexts that are left");
}

#[test]
fn memory_that_cannot_be_registered_is_used_all_the_same() {
    let Some(world) = World::with_nvidia_fs(&["-DNO_SLABS"]) else { return };
    let gpu = world.gpu();
    let heap = gpu.alloc(4 << 20).expect("alloc");
    let slab = gpu.slab(&heap);
    let engine = world.engine(&gpu);
    assert!(slab.why_not().is_some_and(|why| why.contains("is the GPU's BAR too small?")), "{:?}", slab.why_not());
    there_and_back(&engine, &heap, 16);
    assert_eq!(world.cufile("fake_in_slabs"), 0);
    drop((engine, slab));
    world.assert_clean();
}

#[test]
fn transfers_go_in_batches_where_there_are_any() {
    for (libcufile, says) in [
        (&[][..], "in batches"),
        (&["-DNO_BATCH"][..], "call by call: cuFile cannot be used: libcufile has no cuFileBatchIOSetUp"),
        (&["-DBATCH_SETUP_FAILS"][..], "call by call: cuFileBatchIOSetUp failed with 5030"),
    ] {
        let Some(world) = World::with_nvidia_fs(libcufile) else { return };
        let gpu = world.gpu();
        let engine = world.engine(&gpu);
        let route = route(&engine);
        assert!(matches!(&route, Route::Direct { by } if by.contains(says)), "{route:?}");
        there_and_back(&engine, &gpu.alloc(16 << 20).expect("alloc"), 64);
        if libcufile.is_empty() {
            let most = world.cufile("fake_batch_most");
            assert!((2..=BATCH_MAX as i32).contains(&most), "{most} in the largest batch");
        }
        drop(engine);
        world.assert_clean();
    }
}

#[test]
fn files_and_transfers_that_fail_cost_their_objects_nothing_but_time() {
    for trouble in ["files", "calls", "transfers", "looks", "batches", "half"] {
        // With batches there are few calls that could fail.
        let Some(world) = World::with_nvidia_fs(if trouble == "calls" { &["-DNO_BATCH"] } else { &[] }) else { return };
        let gpu = world.gpu();
        let heap = gpu.alloc(16 << 20).expect("alloc");
        let slab = gpu.slab(&heap);
        let engine = world.engine(&gpu);
        world.cufile(&format!("fake_trouble_{trouble}"));
        for objects in [64, 5] {
            there_and_back(&engine, &heap, objects);
            let deleted = engine.delete(&(0..objects as u32).map(key).collect::<Vec<_>>()).wait();
            assert!(deleted.results.iter().all(Result::is_ok), "{:?}", deleted.results);
        }
        let status = engine.status().devices.remove(0);
        match trouble {
            "files" => {
                let last = status.last_refusal.clone().unwrap_or_default();
                assert!(status.refused_files > 10 && last.contains("not supported"), "{status:?}");
            }
            // What was never enqueued went call by call.
            "looks" | "batches" => assert_eq!(status.refused_files, 0, "{status:?}"),
            _ => assert!(status.refused_files > 0, "{trouble}: {status:?}"),
        }
        drop((engine, slab));
        world.assert_clean();
    }
}

/// An engine whose batches are cancelled after a moment without an end.
fn impatient(world: &World) -> (CudaDevice, Engine) {
    let gpu = world.gpu_with(|options| options.batch_deadline = Some(Duration::from_millis(200)));
    let engine = world.engine(&gpu);
    (gpu, engine)
}

#[test]
fn a_batch_that_does_not_end_is_cancelled_and_its_objects_go_another_way() {
    let Some(world) = World::with_nvidia_fs(&[]) else { return };
    let (gpu, engine) = impatient(&world);
    world.cufile("fake_trouble_idle");
    there_and_back(&engine, &gpu.alloc(16 << 20).expect("alloc"), 64);
    let status = engine.status().devices.remove(0);
    assert!(status.refused_files > 0 && status.last_refusal.is_some_and(|why| why.contains("cancelled")));
    drop(engine);
    world.assert_clean();
}

#[test]
fn a_batch_of_which_nothing_is_known_is_given_up_with_its_memory_and_files() {
    give_up(&["silent"]);
}

#[test]
fn what_a_refused_batch_may_have_begun_is_given_up_with_its_memory_and_files() {
    give_up(&["half", "idle", "cancel"]);
}

#[test]
fn a_refused_batch_of_which_nothing_is_known_is_given_up_as_a_whole() {
    give_up(&["half", "silent"]);
}

fn give_up(troubles: &[&str]) {
    let Some(world) = World::with_nvidia_fs(&[]) else { return };
    let (gpu, engine) = impatient(&world);
    let heap = gpu.alloc(16 << 20).expect("alloc");
    let slab = gpu.slab(&heap);
    there_and_back(&engine, &heap, 64);
    for trouble in troubles {
        world.cufile(&format!("fake_trouble_{trouble}"));
    }
    let part = |n: usize| heap.slice(n << 18..(n + 1) << 18);
    let loads = engine.load((0..64).map(|n| (key(n as u32), part(n).buffer().into())).collect()).wait();
    let stores = engine.store((0..64).map(|n| (key(n as u32 + 100), part(n).buffer().into())).collect()).wait();
    let mut lost = 0;
    for (result, buffer) in loads.results.iter().zip(&loads.buffers).chain(stores.results.iter().zip(&stores.buffers)) {
        match result {
            Ok(_) => assert!(buffer.is_some()),
            Err(Error::Device { reason, .. }) => {
                assert!(reason.contains("none of a batch's transfers ended"), "{reason}");
                assert_eq!(reason.contains("it was not taken"), troubles.contains(&"half"), "{reason}");
                assert!(buffer.is_none(), "memory that cuFile may still write to was given back");
                lost += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(lost > 0, "no batch was under way");
    // What went another way is right, and goes on doing so.
    world.cufile("fake_trouble_ends");
    for n in 0..64 {
        let report = engine.load(vec![(key(n as u32), part(n).buffer().into())]).wait();
        assert!(report.results[0].is_ok(), "{:?}", report.results);
        assert!(part(n).read().expect("read") == payload(n as u32, 1 << 18), "object {n}");
    }
    assert_eq!(engine.status().objects as usize, 64 + stores.results.iter().filter(|result| result.is_ok()).count());
    drop((engine, loads, stores, slab, heap, gpu));
    // The drive comes back: memory, slab and files are still there for it.
    let late = world.cufile("fake_late");
    // Where cuFile has said which were not enqueued, those went call by call.
    let is_half_of_them = troubles == ["half", "silent"];
    assert!(0 < late && late <= lost && (late == lost) != is_half_of_them, "{late} were under way, {lost} given up");
    let kept = ["fake_batches_alive", "fake_files", "fake_slabs"].map(|symbol| world.cufile(symbol));
    assert!(kept.iter().all(|kept| *kept > 0), "{kept:?}");
    assert_eq!(world.fakes.count("cuda", "fake_allocated"), 1, "the memory that they were in");
}

#[test]
fn p2pdma_is_asked_for_where_it_is_what_there_is() {
    let driver =
        "proc/driver/nvidia/version=NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build";
    let config = "boot/config-6.8.0-1=CONFIG_PCI_P2PDMA=y";
    let Some(world) = World::new(&[], &["proc/modules", "proc/sys/kernel/osrelease=6.8.0-1", driver, config]) else {
        return;
    };
    let gpu = world.gpu();
    let engine = world.engine(&gpu);
    assert_eq!(route(&engine), Route::Direct { by: "cuFile 1.13 over P2PDMA, in batches".into() });
    assert_eq!(world.cufile("fake_p2pdma"), 1);
    there_and_back(&engine, &gpu.alloc(1 << 20).expect("alloc"), 4);
}

#[test]
fn a_driver_that_hangs_in_this_process_alone_is_given_up_and_the_pipeline_used() {
    let Some(world) = World::with_nvidia_fs(&[]) else { return };
    world.fakes.load("cufile");
    world.cufile("fake_trouble_open");
    let gpu = world.gpu_with(|options| options.open_deadline = Some(Duration::from_millis(300)));
    for _ in 0..2 {
        let engine = world.engine(&gpu);
        let route = route(&engine);
        let is_told = matches!(&route, Route::Pipeline { why } if why.contains("did not come back within 0.3 s"));
        assert!(is_told, "{route:?}");
        there_and_back(&engine, &gpu.alloc(1 << 20).expect("alloc"), 4);
        engine.delete(&(0..4).map(key).collect::<Vec<_>>()).wait();
    }
    assert_eq!(world.cufile("fake_opens"), 1, "tried once");
}

#[test]
fn a_driver_that_hangs_in_compatibility_mode_is_given_up() {
    let Some(world) = World::with_nvidia_fs(&["-DHANGS"]) else { return };
    let gpu = world.gpu_with(|options| options.open_deadline = Some(Duration::from_millis(300)));
    for _ in 0..2 {
        let hung = gpu.compatibility_io().err().expect("it hangs").to_string();
        assert!(hung.contains("did not come back within 0.3 s"), "{hung}");
    }
    assert_eq!(world.cufile("fake_opens"), 1, "tried once");
}

#[test]
fn compatibility_mode_is_had_for_comparisons_alone() {
    let Some(world) = World::with_nvidia_fs(&["-DNO_DRIVER"]) else { return };
    let gpu = world.gpu();
    let io = gpu.compatibility_io().expect("it needs no driver");
    assert_eq!(world.cufile("fake_compat"), 1);
    let path = world.dir.path().join("file");
    // Without O_DIRECT, at any length: what is direct takes neither.
    let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).custom_flags(0).open(&path);
    let file = file.expect("create");
    let handle = io.open(file.as_fd()).expect("register");
    let (from, into) = (gpu.alloc(300_001).expect("alloc"), gpu.alloc(300_001).expect("alloc"));
    from.write(&payload(1, 300_001)).expect("write");
    let span = |slice: &DeviceSlice| DeviceSpan::from(DeviceRange { address: slice.address(), len: slice.len() });
    assert_eq!(io.transfer(Direction::FromDevice, handle, 0, span(&from)).expect("write"), 300_001);
    assert!(std::fs::read(&path).expect("read") == payload(1, 300_001));
    assert_eq!(io.transfer(Direction::ToDevice, handle, 0, span(&into)).expect("read"), 300_001);
    assert!(into.read().expect("read") == payload(1, 300_001));
    assert!(io.batch(BATCH_MAX).is_err(), "batches of this mode can hang");
    io.close(handle);
    world.assert_clean();
}
