//! Which of several volumes a key belongs to: rendezvous hashing over the volumes' numbers and the names of files.
//!
//! Each volume has a score for each name; the highest is the home. So every key has an order of all volumes, a volume that goes leaves
//! its keys to their next ones evenly, and a volume that comes takes over its share, and moves nothing else. The score has to be the
//! same in every program and for ever: CRC-64/NVME of the name, mixed with the volume's number by the finaliser of SplitMix64.

use super::identity::VolumeId;
use crate::integrity::checksum;

/// The volumes, by what their scores are made of.
#[derive(Debug)]
pub(super) struct Homes(Box<[u64]>);

impl Homes {
    pub(super) fn new(ids: &[VolumeId]) -> Self {
        Self(ids.iter().map(|id| mix(id.0)).collect())
    }

    /// The best volume for a name among those that `may` takes.
    pub(super) fn best(&self, name: &str, may: impl Fn(usize) -> bool) -> Option<usize> {
        let hash = checksum(name.as_bytes());
        // The number decides between equal scores: of two volumes, not of the order in which they were given.
        let score = |volume: &usize| (mix(hash ^ self.0[*volume]), self.0[*volume]);
        (0..self.0.len()).filter(|volume| may(*volume)).max_by_key(score)
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [VolumeId; 4] = [VolumeId(1), VolumeId(0xdead_beef), VolumeId(u64::MAX), VolumeId(1 << 40)];
    const NAMES: u32 = 40_000;

    fn name(n: u32) -> String {
        format!("org-SEP-model@0x01000100@0@{:064x}.data", u64::from(n))
    }

    fn homes(ids: &[VolumeId]) -> Vec<u64> {
        let homes = Homes::new(ids);
        (0..NAMES).map(|n| ids[homes.best(&name(n), |_| true).unwrap()].0).collect()
    }

    /// What is on disks by these homes has to be found there by every later version.
    #[test]
    fn homes_never_change() {
        let homes = Homes::new(&IDS);
        let found: Vec<_> = (0..24).map(|n| homes.best(&name(n), |_| true).unwrap()).collect();
        // Computed by a second program.
        assert_eq!(found, [3, 2, 2, 3, 1, 2, 2, 0, 0, 2, 2, 1, 2, 3, 3, 2, 0, 0, 3, 0, 2, 2, 2, 3]);
    }

    #[test]
    fn volumes_share_evenly_in_whatever_order_they_are_given() {
        let forward = homes(&IDS);
        let mut turned = IDS;
        turned.reverse();
        assert_eq!(forward, homes(&turned));
        for id in IDS {
            let share = forward.iter().filter(|home| **home == id.0).count() as f64 / f64::from(NAMES);
            assert!((share - 0.25).abs() < 0.01, "{id}: {share}");
        }
    }

    #[test]
    fn a_volume_that_comes_takes_its_share_and_moves_nothing_else() {
        let (before, after) = (homes(&IDS[..3]), homes(&IDS));
        let moved: Vec<_> = before.iter().zip(&after).filter(|(old, new)| old != new).collect();
        assert!(moved.iter().all(|(_, new)| **new == IDS[3].0));
        let share = moved.len() as f64 / f64::from(NAMES);
        assert!((share - 0.25).abs() < 0.01, "{share}");
    }

    #[test]
    fn the_keys_of_a_volume_that_goes_are_divided_among_the_others() {
        let homes = Homes::new(&IDS);
        let mut taken = [0_u32; 4];
        for n in 0..NAMES {
            let name = name(n);
            let home = homes.best(&name, |_| true).unwrap();
            let next = homes.best(&name, |volume| volume != 0).unwrap();
            assert!(home == 0 || next == home, "only what was there moves");
            taken[next] += u32::from(home == 0);
        }
        let moved: u32 = taken.iter().sum();
        assert!(taken[1..].iter().all(|n| (f64::from(*n) / f64::from(moved) - 1.0 / 3.0).abs() < 0.02), "{taken:?}");
        assert_eq!(homes.best("x", |_| false), None);
    }
}
