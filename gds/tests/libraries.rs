//! The whole CUDA path against libraries of software, built with the system's C compiler: what the real ones would be asked for, in the
//! order and with the structures that their headers have. And everything that can be missing on a machine.

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Fakes, config, key, machine, payload, small};
use saltern::device::{COPY_ATTEMPTS, Route, RouteChoice};
use saltern::{Engine, Error, Integrity};
use saltern_gds::{CudaDevice, CudaOptions, Driver, GdsError, HostKind, HostMemory, Prober};

fn open(fakes: &Fakes, libcuda: &str) -> CudaDevice {
    let mut options = CudaOptions::default();
    options.libcuda = Some(fakes.path(libcuda));
    CudaDevice::open(0, options).expect("the software driver has one GPU")
}

const SIZES: [usize; 8] = [1, 4096, 5000, 64 << 10, 1 << 20, (1 << 20) + 1, 3_000_001, 8 << 20];

#[test]
fn objects_move_between_files_and_device_memory() {
    let Some(fakes) = Fakes::build(&[
        ("cuda", "cuda", &[]),
        ("old", "cuda", &["-DNO_BATCH"]),
        ("refuses", "cuda", &["-DREFUSES_BATCH"]),
    ]) else {
        return;
    };
    for libcuda in ["cuda", "old", "refuses"] {
        let dir = common::dir();
        let device = open(&fakes, libcuda);
        assert_eq!((device.info().name.as_str(), device.info().pci.as_str()), ("Software GPU", "0000:3b:00.0"));
        // As the driver says, where the kernel does not know the GPU.
        assert_eq!(saltern::device::Device::host_node(&device), Some(0));
        let mut config = config(dir.path());
        config.shards = 2;
        config.integrity = Integrity::Verify;
        let engine = Engine::open(config).expect("open");
        engine.attach_device(Arc::new(device.clone()), small()).expect("attach");
        let count = |symbol| fakes.count(libcuda, symbol);
        assert_eq!(count("fake_registered"), 4, "two pools a shard");
        let slices: Vec<_> = SIZES.iter().map(|bytes| device.alloc(*bytes).expect("alloc")).collect();
        for (n, slice) in (0..).zip(&slices) {
            slice.write(&payload(n, slice.len())).expect("write");
        }
        let batch = (0..).zip(&slices).map(|(n, slice)| (key(n), slice.buffer().into())).collect();
        let stored = engine.store(batch).wait();
        assert!(
            stored.results.iter().zip(SIZES).all(|(result, bytes)| *result.as_ref().expect("store") == bytes as u64)
        );
        for slice in &slices {
            slice.write(&vec![0xee; slice.len()]).expect("write");
        }
        let batch = (0..).zip(&slices).map(|(n, slice)| (key(n), slice.buffer().into())).collect();
        let loaded = engine.load(batch).wait();
        for (n, (result, slice)) in (0..).zip(loaded.results.iter().zip(&slices)) {
            assert_eq!(*result.as_ref().expect("load"), slice.len() as u64);
            assert!(slice.read().expect("read") == payload(n, slice.len()), "{libcuda}: {} bytes", slice.len());
        }
        // Scattered to pages, in one call where the driver has one.
        let before = if libcuda == "cuda" { count("fake_batches") } else { 0 };
        let heap = device.alloc(2 * 64 * 4096).expect("alloc");
        heap.write(&vec![0xee; heap.len()]).expect("write");
        let pages: Vec<_> = (0..16).rev().map(|page| 2 * page * 4096..(2 * page + 1) * 4096).collect();
        let report = engine.load(vec![(key(3), heap.parts(&pages, None).into())]).wait();
        assert!(matches!(report.results[..], [Ok(65_536)]), "{:?}", report.results);
        let (bytes, expected) = (heap.read().expect("read"), payload(3, 64 << 10));
        for (page, expected) in pages.iter().zip(expected.chunks(4096)) {
            assert!(
                bytes[page.clone()] == *expected && bytes[page.end..page.end + 4096].iter().all(|byte| *byte == 0xee)
            );
        }
        if libcuda == "cuda" {
            assert!(count("fake_batches") > before, "pages go in one call");
            // More of them than one call takes.
            let many: Vec<_> = (0..4096).map(|page| 128 * page..128 * page + 16).collect();
            let report = engine.load(vec![(key(3), heap.parts(&many, None).into())]).wait();
            assert!(matches!(report.results[..], [Ok(65_536)]), "{:?}", report.results);
            let bytes = heap.read().expect("read");
            assert!(many.iter().zip(expected.chunks(16)).all(|(page, expected)| bytes[page.clone()] == *expected));
            assert_eq!(count("fake_batch_most"), 1024, "blocks of one call");
        }
        drop((engine, slices, heap, report, stored, loaded));
        drop(device);
        let left = ["fake_registered", "fake_allocated", "fake_retained"].map(count);
        assert_eq!(left, [0, 0, 0], "registrations, allocations and contexts that are left");
    }
}

#[test]
fn the_callers_context_stays_the_current_one() {
    let Some(fakes) = Fakes::build(&[("cuda", "cuda", &[])]) else { return };
    let dir = common::dir();
    // As a program would that works on another GPU: what is current is what it calls its GPU.
    fakes.load("cuda");
    fakes.count("cuda", "fake_use_foreign");
    let assert_foreign = |after: &str| assert_eq!(fakes.count("cuda", "fake_is_foreign"), 1, "after {after}");
    let device = open(&fakes, "cuda");
    assert_foreign("open");
    let engine = Engine::open(config(dir.path())).expect("open");
    engine.attach_device(Arc::new(device.clone()), small()).expect("attach");
    assert_foreign("attach");
    let slice = device.alloc(1 << 20).expect("alloc");
    slice.write(&payload(1, 1 << 20)).expect("write");
    assert_foreign("writing");
    // SAFETY: 0 is the default stream of every context.
    #[expect(unsafe_code, reason = "streams are named by number")]
    let fence = unsafe { device.fence(0) }.expect("a fence");
    assert_foreign("a fence");
    let slab = device.slab(&slice);
    drop(fence);
    let mut memory = HostMemory::alloc(&device, HostKind::Pinned, 1 << 20).expect("alloc");
    memory.copy(&slice, false, 1 << 20, 1).expect("copy");
    assert_foreign("copies");
    let stored = engine.store_from_device(vec![(key(1), slice.buffer())]).wait();
    assert!(stored.results[0].is_ok(), "{:?}", stored.results);
    assert!(slice.read().expect("read") == payload(1, 1 << 20));
    drop((memory, slab, stored, slice));
    assert_foreign("giving memory back");
    drop((engine, device));
    assert_foreign("the end");
}

#[test]
fn copies_that_the_driver_refuses_are_made_again() {
    let Some(fakes) = Fakes::build(&[("fails", "cuda", &["-DFAIL_EVERY=5"])]) else { return };
    let (dir, device) = (common::dir(), open(&fakes, "fails"));
    let mut config = config(dir.path());
    config.integrity = Integrity::Verify;
    let engine = Engine::open(config).expect("open");
    engine.attach_device(Arc::new(device.clone()), small()).expect("attach");
    let slice = device.alloc(3 << 20).expect("alloc");
    for n in 0..20 {
        slice.write(&payload(n, 3 << 20)).expect("write");
        let stored = engine.store_from_device(vec![(key(n), slice.buffer())]).wait();
        assert!(matches!(stored.results[..], [Ok(_)]), "{:?}", stored.results);
        slice.write(&vec![0xee; 3 << 20]).expect("write");
        let loaded = engine.load_to_device(vec![(key(n), slice.buffer())]).wait();
        assert!(matches!(loaded.results[..], [Ok(_)]), "{:?}", loaded.results);
        assert!(slice.read().expect("read") == payload(n, 3 << 20), "object {n}");
    }
    let status = engine.status().devices.remove(0);
    // 120 copies went well, and one of 5 did not: each of those was made again, at once or later.
    let copies = fakes.count("fails", "fake_copied");
    assert_eq!((copies, status.repeated_copies), (150 - 1, 29), "{status:?}");
    assert!(status.last_repeat.is_some_and(|why| why.starts_with("cuMemcpy")));
    assert_eq!(status.transit_used_bytes, 0, "slots are held");
}

#[test]
fn copies_that_the_driver_always_refuses_fail_their_object_alone() {
    let Some(fakes) = Fakes::build(&[("fails", "cuda", &[])]) else { return };
    let (dir, device) = (common::dir(), open(&fakes, "fails"));
    let engine = Engine::open(config(dir.path())).expect("open");
    engine.attach_device(Arc::new(device.clone()), small()).expect("attach");
    let heap = device.alloc(20 << 16).expect("alloc");
    let part = |n: usize| heap.slice(n << 16..(n + 1) << 16);
    fakes.break_at("fails", heap.address() + (7 << 16) + 5);
    let batch = (0..20).map(|n| (key(n), part(n as usize).buffer())).collect();
    let stored = engine.store_from_device(batch).wait();
    for (n, result) in stored.results.iter().enumerate() {
        match result {
            Err(Error::Device { op, .. }) if n == 7 => assert!(op.starts_with("cuMemcpy"), "{op}"),
            result => assert!(n != 7 && result.is_ok(), "object {n}: {result:?}"),
        }
    }
    let status = engine.status();
    assert_eq!(status.devices[0].repeated_copies, u64::from(COPY_ATTEMPTS - 1));
    assert_eq!(status.devices[0].transit_used_bytes, 0, "slots are held");
    assert_eq!(status.objects, 19);
}

#[test]
fn a_context_that_has_failed_is_asked_no_oftener_than_copies_are_made() {
    const OBJECTS: u32 = 4;
    let Some(fakes) = Fakes::build(&[("cuda", "cuda", &[])]) else { return };
    let (dir, device) = (common::dir(), open(&fakes, "cuda"));
    let engine = Engine::open(config(dir.path())).expect("open");
    engine.attach_device(Arc::new(device.clone()), small()).expect("attach");
    let slice = device.alloc(1 << 20).expect("alloc");
    fakes.count("cuda", "fake_stall");
    // Under way when it fails, and begun afterwards.
    let batch = |first: u32| (first..first + OBJECTS).map(|n| (key(n), slice.buffer())).collect();
    let before = engine.store_from_device(batch(0));
    let started = Instant::now();
    while engine.status().devices[0].transit_used_bytes < 4 << 20 && started.elapsed() < Duration::from_secs(20) {
        std::thread::yield_now();
    }
    fakes.count("cuda", "fake_break_context");
    let after = engine.store_from_device(batch(100));
    for ticket in [before, after] {
        for result in ticket.wait().results {
            assert!(
                matches!(&result, Err(Error::Device { reason, .. }) if reason.contains("ILLEGAL_ADDRESS")),
                "{result:?}"
            );
        }
    }
    let status = engine.status().devices.remove(0);
    assert_eq!(status.repeated_copies, u64::from(2 * OBJECTS * (COPY_ATTEMPTS - 1)), "{status:?}");
    assert_eq!(status.transit_used_bytes, 0, "slots are held");
    // Each attempt is a copy, an event and its query, or what is waited for instead of them.
    let refused = fakes.count("cuda", "fake_refused");
    assert!(refused <= 2 * OBJECTS as i32 * COPY_ATTEMPTS as i32 * 4, "{refused} calls in a failed context");
    assert_eq!(engine.status().objects, 0);
    engine.close();
}

#[test]
fn a_copy_that_fails_in_a_batch_of_copies_fails_its_object_alone() {
    // Each in two pages, so that even one alone goes in a batch.
    const OBJECTS: usize = 16;
    const BAD: usize = 5;
    const PAGE: usize = 32 << 10;
    for tells_which in [true, false] {
        let Some(fakes) = Fakes::build(&[("cuda", "cuda", &[])]) else { return };
        let (dir, device) = (common::dir(), open(&fakes, "cuda"));
        let engine = Engine::open(config(dir.path())).expect("open");
        engine.attach_device(Arc::new(device.clone()), small()).expect("attach");
        let heap = device.alloc(OBJECTS * 4 * PAGE).expect("alloc");
        let page = |number: usize| 2 * number * PAGE..(2 * number + 1) * PAGE;
        let pages = |n: usize| [page(2 * n), page(2 * n + 1)];
        let fill = || {
            for n in 0..OBJECTS {
                for (page, bytes) in pages(n).into_iter().zip(payload(n as u32, 2 * PAGE).chunks(PAGE)) {
                    heap.slice(page).write(bytes).expect("write");
                }
            }
        };
        // Behind what holds the default stream, so that they come to the driver together.
        let together = |first: u32, store: bool| {
            fakes.count("cuda", "fake_hold");
            // SAFETY: 0 is the default stream of every context.
            #[expect(unsafe_code, reason = "streams are named by number")]
            let fence = unsafe { device.fence(0) }.expect("a fence");
            let batch = (0..OBJECTS).map(|n| (key(first + n as u32), heap.parts(&pages(n), Some(fence.clone()))));
            let ticket = match store {
                true => Ok(engine.store_from_device(batch.collect())),
                false => Err(engine.load_to_device(batch.collect())),
            };
            fakes.count("cuda", "fake_release");
            ticket.map_or_else(|load| load.wait().results, |store| store.wait().results)
        };
        let assert_only_bad_fails = |results: &[Result<u64, Error>], call: &str| {
            for (n, result) in results.iter().enumerate() {
                match result {
                    Err(Error::Device { op, .. }) if n == BAD => assert_eq!(*op, call),
                    result => assert!(n != BAD && result.is_ok(), "object {n}: {result:?}"),
                }
            }
        };
        let assert_bytes = |first: u32| {
            for n in (0..OBJECTS).filter(|n| *n != BAD) {
                let read = pages(n).map(|page| heap.slice(page).read().expect("read")).concat();
                assert!(read == payload(n as u32, 2 * PAGE), "object {n} of {first}");
            }
        };
        fill();
        assert!(together(0, true).iter().all(Result::is_ok));
        if !tells_which {
            fakes.count("cuda", "fake_silent_batches");
        }
        fakes.break_at("cuda", heap.address() + page(2 * BAD + 1).start as u64 + 100);
        assert_only_bad_fails(&together(100, true), "cuMemcpyDtoHAsync");
        assert!(fakes.count("cuda", "fake_failed_batches") > 0, "no batch of copies failed");
        heap.write(&vec![0xee; heap.len()]).expect("write");
        assert_only_bad_fails(&together(0, false), "cuMemcpyHtoDAsync");
        assert_bytes(0);
        // What was stored in a batch that failed is right, too.
        fakes.break_at("cuda", 0);
        heap.write(&vec![0xee; heap.len()]).expect("write");
        let batches = fakes.count("cuda", "fake_batches");
        let loaded = together(100, false);
        assert!(loaded.iter().enumerate().all(|(n, result)| result.is_ok() == (n != BAD)), "{loaded:?}");
        assert_bytes(100);
        // Where no copy was to blame, the function is left alone.
        assert_eq!(fakes.count("cuda", "fake_batches") > batches, tells_which);
        assert_eq!(engine.status().devices[0].transit_used_bytes, 0, "slots are held");
    }
}

#[test]
fn what_is_missing_is_an_error_that_names_it() {
    let none = Driver::load(Some(Path::new("/no/such/libcuda.so.1"))).err().expect("no library");
    assert!(matches!(&none, GdsError::NoLibrary { library, .. } if library.contains("libcuda")), "{none}");
    let Some(fakes) = Fakes::build(&[
        ("none", "cuda", &["-DDEVICES=0"]),
        ("lacks", "cuda", &["-DLACKS_A_SYMBOL"]),
        ("cuda", "cuda", &[]),
    ]) else {
        return;
    };
    let error = |libcuda: &str, ordinal| {
        let mut options = CudaOptions::default();
        options.libcuda = Some(fakes.path(libcuda));
        CudaDevice::open(ordinal, options).err().expect("it cannot be opened")
    };
    let no_gpu = error("none", 0);
    assert!(
        matches!(&no_gpu, GdsError::Cuda { call: "cuInit", code: 100, name } if name == "CUDA_ERROR_NO_DEVICE"),
        "{no_gpu}"
    );
    let lacks = error("lacks", 0);
    assert!(matches!(&lacks, GdsError::NoSymbol { symbol: "cuPointerGetAttribute", .. }), "{lacks}");
    let other = error("cuda", 7);
    assert!(matches!(other, GdsError::NoDevice { ordinal: 7, count: 1 }), "{other}");
}

/// A prober on a machine where everything is there, but for what the test changes.
fn prober(fakes: &Fakes, libcufile: &str, root: &Path) -> Prober {
    let mut prober = Prober::default();
    prober.libcuda = Some(fakes.path("cuda"));
    prober.libcufile = Some(fakes.path(libcufile));
    prober.helper = Some(env!("CARGO_BIN_EXE_saltern-gds-probe").into());
    prober.machine = saltern_gds::machine::Machine::at(root);
    prober.deadline = Duration::from_secs(60);
    prober
}

#[test]
fn a_probe_says_direct_or_why_not_and_always_comes_back() {
    let Some(fakes) = Fakes::build(&[
        ("cuda", "cuda", &[]),
        ("good", "cufile", &[]),
        ("hangs", "cufile", &["-DHANGS"]),
        ("crashes", "cufile", &["-DCRASHES"]),
        ("no-driver", "cufile", &["-DNO_DRIVER"]),
        ("no-udev", "cufile", &["-DNO_UDEV"]),
        ("old", "cufile", &["-DOLD"]),
        ("wrong", "cufile", &["-DWRONG_BYTES"]),
        ("no-batch", "cufile", &["-DNO_BATCH"]),
        ("no-set-up", "cufile", &["-DBATCH_SETUP_FAILS"]),
        ("batch-crashes", "cufile", &["-DBATCH_CRASHES"]),
        ("batch-hangs", "cufile", &["-DBATCH_HANGS"]),
    ]) else {
        return;
    };
    let (dir, root) = (common::dir(), machine(&["proc/modules", "proc/driver/nvidia-fs/version"]));
    let probe = |libcufile: &str| prober(&fakes, libcufile, root.path()).probe(dir.path());
    let good = probe("good").expect("direct");
    assert_eq!((good.version.as_str(), good.by, good.no_batches), ("1.13", "nvidia-fs", None));
    let why = |libcufile: &str| probe(libcufile).expect_err(libcufile).to_string();
    assert!(
        why("no-driver").contains("nvidia-fs is not loaded, and compatibility mode was forbidden"),
        "{}",
        why("no-driver")
    );
    assert!(why("no-udev").contains("file system type unknown to cuFile: no udev record for"), "{}", why("no-udev"));
    assert!(why("old").contains("cuFileSetParameterBool"), "{}", why("old"));
    assert!(why("crashes").contains("did cuFile crash?"), "{}", why("crashes"));
    assert!(why("wrong").contains("not what was written"), "{}", why("wrong"));
    // Batches may be missing, crash or hang: then calls that block are direct all the same, and the batches are left alone.
    let no_batches = |libcufile: &str, deadline: Duration| {
        let mut prober = prober(&fakes, libcufile, root.path());
        prober.deadline = deadline;
        prober.probe(dir.path()).expect("direct").no_batches.expect("no batches")
    };
    let long = Duration::from_secs(60);
    assert!(no_batches("no-batch", long).contains("no cuFileBatchIOSetUp"));
    assert!(no_batches("no-set-up", long).contains("cuFileBatchIOSetUp failed with 5030"));
    assert!(no_batches("batch-crashes", long).contains("crashed in a batch"));
    assert!(no_batches("batch-hangs", Duration::from_secs(3)).contains("did not come back"));
    // A driver that hangs is killed, and it is the deadline that says so.
    let mut hangs = prober(&fakes, "hangs", root.path());
    hangs.deadline = Duration::from_millis(300);
    let hung = hangs.probe(dir.path()).expect_err("it hangs").to_string();
    assert!(hung.contains("did not come back within 0.3 s, and was killed"), "{hung}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readdir").count(), 0, "the trial's file is removed");
}

#[test]
fn cheap_checks_come_before_any_driver_is_opened() {
    let Some(fakes) = Fakes::build(&[("cuda", "cuda", &[]), ("hangs", "cufile", &["-DHANGS"])]) else { return };
    let dir = common::dir();
    let why = |files: &[&str], libcufile: &str| {
        let root = machine(files);
        prober(&fakes, libcufile, root.path()).probe(dir.path()).expect_err("not direct").to_string()
    };
    let modules = why(&["proc/driver/nvidia-fs/version"], "hangs");
    assert!(modules.contains("proc/modules does not exist"), "{modules}");
    let nothing = why(&["proc/modules", "proc/sys/kernel/osrelease=5.15.0-generic"], "hangs");
    assert!(nothing.contains("P2PDMA needs Linux 6.2; this is 5.15.0-generic"), "{nothing}");
    let p2p =
        ["proc/modules", "proc/sys/kernel/osrelease=6.8.0-1", "boot/config-6.8.0-1=# CONFIG_PCI_P2PDMA is not set"];
    assert!(why(&p2p, "hangs").contains("needs CONFIG_PCI_P2PDMA"));
    let closed = "proc/driver/nvidia/version=NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15";
    assert!(
        why(&["proc/modules", "proc/sys/kernel/osrelease=6.8.0", closed], "hangs")
            .contains("the closed one, 550.54.15")
    );
    let mut no_library = prober(&fakes, "hangs", Path::new("/no/such/root"));
    no_library.libcufile = Some("/no/such/libcufile.so.0".into());
    let missing = no_library.probe(dir.path()).expect_err("no library").to_string();
    assert!(missing.contains("libcufile.so.0 cannot be loaded"), "{missing}");
    let root = machine(&["proc/modules", "proc/driver/nvidia-fs/version"]);
    let mut alone = prober(&fakes, "hangs", root.path());
    alone.helper = None;
    let alone = alone.probe(dir.path()).expect_err("no helper").to_string();
    assert!(alone.contains("no helper program"), "{alone}");
}

#[test]
fn a_machine_without_anything_answers_at_once() {
    // Whatever this machine has: nothing hangs, nothing panics, and the answer has a reason. The deadline turns a hang into a failure.
    let started = Instant::now();
    match CudaDevice::open(0, CudaOptions::default()) {
        Ok(device) => {
            let route = saltern::device::Device::route(&device, Path::new("."), RouteChoice::Auto).expect("a route");
            assert!(matches!(route, Route::Direct { .. } | Route::Pipeline { .. }));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let state = Prober::default().state();
    assert!(state.by.is_some() || state.why_not.is_some(), "{state:?}");
    assert!(started.elapsed() < Duration::from_secs(60), "it hung");
}

#[test]
fn every_kind_of_host_memory_can_be_copied() {
    let Some(fakes) = Fakes::build(&[("cuda", "cuda", &[])]) else { return };
    let device = open(&fakes, "cuda");
    let slice = device.alloc(1 << 20).expect("alloc");
    for kind in HostKind::ALL {
        let mut memory = HostMemory::alloc(&device, kind, 1 << 20).expect("alloc");
        memory.as_mut_slice().copy_from_slice(&payload(3, 1 << 20));
        memory.copy(&slice, true, 100_000, 2).expect("copy");
        assert!(slice.read().expect("read") == payload(3, 1 << 20), "{}", kind.name());
        memory.as_mut_slice().fill(0);
        memory.copy(&slice, false, 100_000, 1).expect("copy");
        assert!(memory.as_slice() == payload(3, 1 << 20), "{}", kind.name());
    }
}

#[test]
fn a_damaged_file_is_a_miss_on_the_gpu_too() {
    let Some(fakes) = Fakes::build(&[("cuda", "cuda", &[])]) else { return };
    let (dir, device) = (common::dir(), open(&fakes, "cuda"));
    let mut config = config(dir.path());
    config.integrity = Integrity::Verify;
    let engine = Engine::open(config).expect("open");
    if engine.status().integrity != Integrity::Verify {
        return eprintln!("skipped: no user attributes here");
    }
    engine.attach_device(Arc::new(device.clone()), small()).expect("attach");
    let slice = device.alloc(3_000_000).expect("alloc");
    slice.write(&payload(1, 3_000_000)).expect("write");
    engine.store(vec![(key(1), slice.buffer().into())]).wait().results.remove(0).expect("store");
    let entries = std::fs::read_dir(dir.path()).expect("readdir").map(|entry| entry.expect("readdir").path());
    let path = entries.into_iter().find(|path| path.is_file()).expect("one object");
    std::fs::OpenOptions::new().write(true).open(path).expect("open").write_all_at(b"x", 2_000_000).expect("write");
    let result = engine.load(vec![(key(1), slice.buffer().into())]).wait().results.remove(0);
    assert!(matches!(result, Err(Error::Corrupt { .. })), "{result:?}");
}

/// An object behind what is on the default stream, which is held, and one that is not.
fn store_behind(engine: &Engine, device: &CudaDevice, number: u32) -> saltern::Ticket<saltern::StoreReport> {
    let slice = device.alloc(3 << 20).expect("alloc");
    slice.write(&payload(number, 3 << 20)).expect("write");
    // SAFETY: 0 is the default stream of every context.
    #[expect(unsafe_code, reason = "streams are named by number")]
    let fence = unsafe { device.fence(0) }.expect("a fence");
    engine.store_from_device(vec![(key(number), slice.part(0..3 << 20, Some(fence)))])
}

/// An engine with this device, which closes without what the device does not end, long before a ticket's deadline.
fn closing_soon(dir: &Path, device: &CudaDevice) -> Engine {
    let mut options = small();
    options.close_deadline = Duration::from_millis(300);
    let mut config = config(dir);
    config.store_deadline = Duration::from_secs(600);
    let engine = Engine::open(config).expect("open");
    engine.attach_device(Arc::new(device.clone()), options).expect("attach");
    engine
}

#[test]
fn copies_wait_for_the_callers_stream_and_others_do_not() {
    let Some(fakes) = Fakes::build(&[("cuda", "cuda", &[])]) else { return };
    let (dir, device) = (common::dir(), open(&fakes, "cuda"));
    let engine = closing_soon(dir.path(), &device);
    fakes.count("cuda", "fake_hold");
    let mut waiting = store_behind(&engine, &device, 1);
    let free = device.alloc(3 << 20).expect("alloc");
    free.write(&payload(2, 3 << 20)).expect("write");
    assert!(engine.store_from_device(vec![(key(2), free.buffer())]).wait().results[0].is_ok());
    assert!(waiting.wait_timeout(Duration::from_millis(50)).is_none());
    fakes.count("cuda", "fake_release");
    assert!(waiting.wait().results[0].is_ok());
    assert!(engine.load_to_device(vec![(key(1), free.buffer())]).wait().results[0].is_ok());
    assert!(free.read().expect("read") == payload(1, 3 << 20));
    // Work that is never done: closing does not wait for it for ever, and everything is free.
    fakes.count("cuda", "fake_hold");
    let never = store_behind(&engine, &device, 3);
    engine.close();
    let results = never.wait().results;
    assert!(matches!(&results[..], [Err(Error::Device { op: "fence", .. } | Error::Closed)]), "{results:?}");
    drop((free, device));
    let left = ["fake_registered", "fake_allocated", "fake_retained"].map(|symbol| fakes.count("cuda", symbol));
    assert_eq!(left, [0, 0, 0], "registrations, allocations and contexts that are left");
}

#[test]
fn an_engine_closes_under_a_gpu_that_does_nothing_any_more() {
    let Some(fakes) = Fakes::build(&[("cuda", "cuda", &[])]) else { return };
    let (dir, device) = (common::dir(), open(&fakes, "cuda"));
    let engine = closing_soon(dir.path(), &device);
    fakes.count("cuda", "fake_stall");
    let slice = device.alloc(3 << 20).expect("alloc");
    let stuck = engine.store_from_device(vec![(key(1), slice.buffer())]);
    drop(slice);
    std::thread::sleep(Duration::from_millis(50));
    engine.close();
    let results = stuck.wait().results;
    assert!(matches!(&results[..], [Err(Error::Device { .. } | Error::Closed)]), "{results:?}");
    // What the GPU may still touch is not given back.
    if matches!(results[0], Err(Error::Device { .. })) {
        let kept = ["fake_registered", "fake_allocated"].map(|symbol| fakes.count("cuda", symbol));
        assert_eq!(kept, [2, 1], "pools and memory that a copy is under way on");
    }
}
