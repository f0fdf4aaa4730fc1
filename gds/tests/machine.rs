//! What the kernel shows of disks and GPUs, on machines that a test makes.

mod common;

use std::os::unix::fs::MetadataExt;

use common::machine;
use saltern_gds::machine::Machine;
use tempfile::TempDir;

#[test]
fn the_distance_between_a_disk_and_a_gpu_is_found() {
    let dir = common::dir();
    let device = dir.path().metadata().expect("stat").dev();
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    // A partition, whose disk has no node of its own, and whose controller has.
    let controller = "sys/devices/pci0000:80/0000:81:00.0";
    let root = machine(&[
        &format!("{controller}/numa_node=1\n"),
        &format!("{controller}/nvme0/nvme0n1/nvme0n1p1/partition=1"),
        "sys/bus/pci/devices/0000:3b:00.0/numa_node=0\n",
        "sys/bus/pci/devices/0000:5e:00.0/numa_node=-1\n",
        "sys/devices/system/node/online=0-1\n",
        "sys/devices/system/node/node0/distance=10 32\n",
    ]);
    link(&root, &format!("sys/dev/block/{major}:{minor}"), &format!("{controller}/nvme0/nvme0n1/nvme0n1p1"));
    let found = Machine::at(root.path());
    assert_eq!(found.disk_node(dir.path()), Some(1));
    // CUDA writes the domain with eight digits.
    assert_eq!((found.pci_node("0000:3b:00.0"), found.pci_node("00000000:3b:00.0")), (Some(0), Some(0)));
    assert_eq!((found.pci_node("0000:5e:00.0"), found.pci_node("0000:ff:00.0")), (None, None));
    assert_eq!((found.node_distance(0, 1), found.node_distance(0, 0)), (Some(32), Some(10)));
    assert_eq!((found.node_distance(0, 2), found.node_distance(1, 0), found.node_distance(0, -1)), (None, None, None));
    let nothing = machine(&[]);
    assert_eq!(Machine::at(nothing.path()).disk_node(dir.path()), None);
}

#[test]
fn distances_are_those_of_the_nodes_that_are_online() {
    let root = machine(&[
        "sys/devices/system/node/online=0,2-3,7\n",
        "sys/devices/system/node/node0/distance=10 20 21 70\n",
        "sys/devices/system/node/node2/distance=20 10 12 72\n",
    ]);
    let found = Machine::at(root.path());
    let distances = |from| [0, 1, 2, 3, 7, 8].map(|to| found.node_distance(from, to));
    assert_eq!(distances(0), [Some(10), None, Some(20), Some(21), Some(70), None]);
    assert_eq!(distances(2), [Some(20), None, Some(10), Some(12), Some(72), None]);
    assert_eq!(found.node_distance(1, 0), None);
    // Without the list, or with one that is not understood, a column could be any node's.
    for online in ["sys/other", "sys/devices/system/node/online=0,x\n"] {
        let root = machine(&[online, "sys/devices/system/node/node0/distance=10 20\n"]);
        assert_eq!(Machine::at(root.path()).node_distance(0, 0), None, "{online}");
    }
}

/// A link in a machine's root to another place in it.
fn link(root: &TempDir, from: &str, to: &str) {
    let from = root.path().join(from);
    std::fs::create_dir_all(from.parent().expect("it is below the root")).expect("mkdir");
    std::os::unix::fs::symlink(root.path().join(to), from).expect("symlink");
}

/// Two disks, on these nodes, each with a partition, and nothing above them.
fn two_disks(nodes: [i32; 2], files: &[&str]) -> TempDir {
    let disk = |n: usize| format!("sys/devices/pci0000:80/0000:8{n}:00.0");
    let mut all = Vec::new();
    for (n, node) in nodes.iter().enumerate() {
        all.push(format!("{}/numa_node={node}\n", disk(n)));
        all.push(format!("{}/nvme/nvme{n}n1/nvme{n}n1p1/partition=1", disk(n)));
        all.push(format!("dev/nvme{n}n1p1"));
    }
    let all: Vec<_> = all.iter().map(String::as_str).chain(files.iter().copied()).collect();
    let root = machine(&all);
    for n in 0..2 {
        link(&root, &format!("sys/class/block/nvme{n}n1p1"), &format!("{}/nvme/nvme{n}n1/nvme{n}n1p1", disk(n)));
    }
    root
}

#[test]
fn a_device_that_is_made_of_others_is_where_all_of_them_are() {
    let dir = common::dir();
    let device = dir.path().metadata().expect("stat").dev();
    let at = format!("sys/dev/block/{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    for (nodes, found) in [([1, 1], Some(1)), ([0, 1], None), ([1, -1], None), ([-1, -1], None)] {
        // A logical volume on an encrypted RAID of both.
        let virtual_ = "sys/devices/virtual/block";
        let [lvm, crypt, raid] = ["dm-1", "dm-0", "md0"].map(|name| format!("{virtual_}/{name}"));
        let root = two_disks(nodes, &[&format!("{lvm}/size=1"), &format!("{crypt}/size=1"), &format!("{raid}/size=1")]);
        link(&root, &at, &lvm);
        link(&root, &format!("{lvm}/slaves/dm-0"), &crypt);
        link(&root, &format!("{crypt}/slaves/md0"), &raid);
        for n in 0..2 {
            link(&root, &format!("{raid}/slaves/nvme{n}n1p1"), &format!("sys/class/block/nvme{n}n1p1"));
        }
        assert_eq!(Machine::at(root.path()).disk_node(dir.path()), found, "{nodes:?}");
    }
}

#[test]
fn a_file_system_without_a_device_number_is_where_its_mounts_devices_are() {
    let parent = common::dir();
    let dir = parent.path().canonicalize().expect("a path").join("with blank");
    std::fs::create_dir(&dir).expect("mkdir");
    let point = dir.to_str().expect("a path").replace(' ', "\\040");
    let node = |nodes: [i32; 2], source: &str, links: &[(&str, &str)]| {
        let mounts = format!(
            "proc/self/mountinfo=21 1 0:20 / / rw - btrfs /dev/other rw\n\
             22 21 0:24 / {point} rw shared:7 - xfs /dev/covered rw\n\
             23 22 0:25 /volume {point} rw shared:8 - btrfs {source} rw,subvol=/volume\n\
             24 23 0:26 / {point}/below rw - btrfs /dev/other rw\n"
        );
        let root = two_disks(nodes, &[&mounts]);
        links.iter().for_each(|(from, to)| link(&root, from, to));
        Machine::at(root.path()).disk_node(&dir)
    };
    assert_eq!(node([1, 0], "/dev/nvme0n1p1", &[]), Some(1));
    assert_eq!(node([1, 0], "/dev/nvme1n1p1", &[]), Some(0));
    assert_eq!(node([1, 0], "/dev/mapper/group-volume", &[("dev/mapper/group-volume", "dev/nvme1n1p1")]), Some(0));
    let all =
        [0, 1].map(|n| (format!("sys/fs/btrfs/1-2-3/devices/nvme{n}n1p1"), format!("sys/class/block/nvme{n}n1p1")));
    let all = all.each_ref().map(|(from, to)| (from.as_str(), to.as_str()));
    assert_eq!(node([1, 1], "/dev/nvme0n1p1", &all), Some(1));
    assert_eq!(node([1, 0], "/dev/nvme0n1p1", &all), None, "of both disks");
    for source in ["none", "server:/export", "/dev/gone"] {
        assert_eq!(node([1, 1], source, &[]), None, "{source}");
    }
}
