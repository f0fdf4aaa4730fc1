//! What Python callers can set: JSON in, an engine's configuration out.
//!
//! Every value is checked, and an unknown name is an error: a misspelt option must not be a default in silence.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use saltern::device::DeviceOptions;
use saltern::eviction::PolicyKind;
use saltern::layout::Layout;
use saltern::{Admission, Config, DirectIo, Discovery, Durability, Eviction, Integrity, IoPriority};
use serde::Deserialize;

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;
const GIB: f64 = 1024.0 * MIB;

/// Who decides which objects go when the capacity is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EvictionMode {
    /// The host: the daemon's eviction controller, or whoever calls `delete`.
    #[default]
    Host,
    /// The engine, by a policy of its own. The host may delete as well.
    Engine,
}

/// Which of the objects that are offered are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AdmissionMode {
    /// All that fit.
    #[default]
    All,
    /// Those that were asked for, or offered, several times of late.
    Frequent,
}

/// The options, named as `README.md` describes them. Sizes are in powers of 1024, as LMCache's are.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Options {
    base_path: Option<PathBuf>,
    base_paths: Option<Vec<PathBuf>>,
    require_volumes: Option<bool>,
    volume_capacity_gb: Option<f64>,
    layout: Option<String>,
    #[serde(default)]
    max_capacity_gb: f64,
    #[serde(default)]
    pub(crate) eviction_mode: EvictionMode,
    eviction_policy: Option<PolicyKind>,
    eviction_watermark: Option<f64>,
    eviction_ratio: Option<f64>,
    default_quota_gb: Option<f64>,
    #[serde(default)]
    admission: AdmissionMode,
    admission_uses: Option<u8>,
    admission_window: Option<u64>,
    /// By salt; kept in the directory, as [`saltern::Engine::set_quota`] says.
    #[serde(default)]
    quotas_gb: BTreeMap<String, f64>,
    durability: Option<Durability>,
    integrity: Option<Integrity>,
    direct_io: Option<DirectIo>,
    /// Store whole slots of the host's memory instead of the objects' own bytes, as `fs_native` with O_DIRECT does.
    #[serde(default)]
    pub(crate) store_padded: bool,
    shards: Option<usize>,
    pin_shards: Option<bool>,
    depth: Option<usize>,
    segment_kb: Option<f64>,
    pool_mb: Option<f64>,
    max_object_mb: Option<f64>,
    max_queued_objects: Option<usize>,
    spare_gb: Option<f64>,
    min_free_gb: Option<f64>,
    open_files: Option<usize>,
    store_deadline_s: Option<f64>,
    load_deadline_s: Option<f64>,
    lookup_deadline_s: Option<f64>,
    pin_lease_s: Option<f64>,
    lock_wait_s: Option<f64>,
    discovery: Option<Discovery>,
    absent_ttl_s: Option<f64>,
    persist_enabled: Option<bool>,
    io_priority: Option<IoPriority>,
    write_zeroes: Option<bool>,
    scan_threads: Option<usize>,
    snapshot_interval_s: Option<f64>,
    status_socket: Option<bool>,
    gpu_route: Option<String>,
    gpu_chunk_mb: Option<f64>,
    gpu_transit_mb: Option<f64>,
}

impl Options {
    pub(crate) fn parse(json: &str) -> Result<Self, String> {
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(json)).map_err(|error| {
            // The place in the JSON is of no use: the caller wrote keywords, or a larger document.
            let text = error.inner().to_string();
            let reason = text.split(" at line ").next().unwrap_or(&text);
            match error.path().to_string().as_str() {
                "." => reason.to_owned(),
                option => format!("{option}: {reason}"),
            }
        })
    }

    /// The directories of all volumes, at least one.
    fn directories(&self) -> Result<&[PathBuf], String> {
        let all = match (&self.base_path, self.base_paths.as_deref()) {
            (Some(_), Some(_)) => return Err("base_path and base_paths exclude each other".into()),
            (Some(path), None) => std::slice::from_ref(path),
            (None, Some([])) => return Err("base_paths is empty".into()),
            (None, Some(paths)) => paths,
            (None, None) => return Err("base_path is missing: the directory that holds the objects".into()),
        };
        if all.iter().any(|path| path.as_os_str().is_empty()) {
            return Err("base_path is empty".into());
        }
        Ok(all)
    }

    /// Quotas to set when the engine is open: salts and bytes.
    pub(crate) fn quotas(&self) -> Result<Vec<(String, u64)>, String> {
        let quota = |(salt, gb): (&String, &f64)| Ok((salt.clone(), bytes("quotas_gb", *gb, GIB)?));
        self.quotas_gb.iter().map(quota).collect()
    }

    fn eviction(&self) -> Result<Eviction, String> {
        let given = [
            ("eviction_policy", self.eviction_policy.is_some()),
            ("eviction_watermark", self.eviction_watermark.is_some()),
            ("eviction_ratio", self.eviction_ratio.is_some()),
        ];
        if self.eviction_mode == EvictionMode::Host {
            return match given.iter().find(|(_, is_given)| *is_given) {
                Some((option, _)) => Err(format!("{option}: only with eviction_mode engine; the host has its own")),
                None => Ok(Eviction::Host),
            };
        }
        let mut eviction = Eviction::engine(self.eviction_policy.unwrap_or_default());
        if let Eviction::Engine { watermark, ratio, .. } = &mut eviction {
            set(watermark, self.eviction_watermark);
            set(ratio, self.eviction_ratio);
        }
        Ok(eviction)
    }

    fn admission(&self) -> Result<Admission, String> {
        if self.admission == AdmissionMode::All {
            let given = [
                ("admission_uses", self.admission_uses.is_some()),
                ("admission_window", self.admission_window.is_some()),
            ];
            return match given.iter().find(|(_, is_given)| *is_given) {
                Some((option, _)) => Err(format!("{option}: only with admission frequent")),
                None => Ok(Admission::All),
            };
        }
        let mut admission = Admission::frequent();
        if let Admission::Frequent { uses, window } = &mut admission {
            set(uses, self.admission_uses);
            set(window, self.admission_window);
        }
        Ok(admission)
    }

    /// How GPUs are used.
    pub(crate) fn device(&self) -> Result<DeviceOptions, String> {
        let mut device = DeviceOptions::default();
        if let Some(name) = &self.gpu_route {
            device.route = name.parse().map_err(|error| format!("gpu_route: {error}"))?;
        }
        if let Some(mb) = self.gpu_chunk_mb {
            device.chunk_bytes = bytes("gpu_chunk_mb", mb, MIB)? as usize;
        }
        if let Some(mb) = self.gpu_transit_mb {
            device.transit_bytes = bytes("gpu_transit_mb", mb, MIB)? as usize;
        }
        device.validate().map_err(|error| format!("gpu_chunk_mb, gpu_transit_mb: {error}"))?;
        Ok(device)
    }

    /// For hosts that hand over memory of the host's alone.
    pub(crate) fn without_gpus(&self) -> Result<(), String> {
        let given = [
            ("gpu_route", self.gpu_route.is_some()),
            ("gpu_chunk_mb", self.gpu_chunk_mb.is_some()),
            ("gpu_transit_mb", self.gpu_transit_mb.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given).map_or(Ok(()), |(option, _)| {
            Err(format!("{option}: only saltern.Engine moves memory of GPUs; LMCache hands over the host's"))
        })
    }

    /// The configuration of an engine. Its own limits are checked when it opens.
    pub(crate) fn config(&self) -> Result<Config, String> {
        let mut config = Config::over(self.directories()?);
        set(&mut config.require_volumes, self.require_volumes);
        if let Some(gb) = self.volume_capacity_gb {
            config.volume_capacity_bytes = Some(bytes("volume_capacity_gb", gb, GIB)?);
        }
        if let Some(name) = &self.layout {
            config.layout = name.parse::<Layout>().map_err(|error| format!("layout: {error}"))?;
        }
        if matches!(config.layout, Layout::Nixl | Layout::Nixl3 | Layout::NixlSharded) {
            // Such directories are shared among processes: what one stores, the others find by asking the disk.
            config.discovery = Discovery::ScanAndAsk;
        }
        if self.discovery == Some(Discovery::Ask) {
            // Its objects reach listeners only when somebody asks for them, and the host evicts by what listeners hear.
            return Err("discovery: ask hides objects from the host's eviction; use scan or scan-and-ask".into());
        }
        set(&mut config.discovery, self.discovery);
        set_time(&mut config.absent_ttl, "absent_ttl_s", self.absent_ttl_s)?;
        set(&mut config.persist, self.persist_enabled);
        set(&mut config.io_priority, self.io_priority);
        set(&mut config.write_zeroes, self.write_zeroes);
        let capacity = bytes("max_capacity_gb", self.max_capacity_gb, GIB)?;
        config.capacity_bytes = (capacity > 0).then_some(capacity);
        config.eviction = self.eviction()?;
        config.admission = self.admission()?;
        if let Some(gb) = self.default_quota_gb {
            config.default_quota_bytes = Some(bytes("default_quota_gb", gb, GIB)?);
        }
        set(&mut config.durability, self.durability);
        set(&mut config.integrity, self.integrity);
        set(&mut config.direct_io, self.direct_io);
        set(&mut config.shards, self.shards);
        set(&mut config.pin_shards, self.pin_shards);
        set(&mut config.depth, self.depth);
        set(&mut config.scan_threads, self.scan_threads);
        set(&mut config.max_queued_objects, self.max_queued_objects);
        set_bytes(&mut config.spare_bytes, "spare_gb", self.spare_gb, GIB)?;
        set_bytes(&mut config.max_object_bytes, "max_object_mb", self.max_object_mb, MIB)?;
        if let Some(gb) = self.min_free_gb {
            config.min_free_bytes = Some(bytes("min_free_gb", gb, GIB)?);
        }
        config.open_files = self.open_files;
        set_time(&mut config.store_deadline, "store_deadline_s", self.store_deadline_s)?;
        set_time(&mut config.load_deadline, "load_deadline_s", self.load_deadline_s)?;
        set_time(&mut config.lookup_deadline, "lookup_deadline_s", self.lookup_deadline_s)?;
        set_time(&mut config.pin_lease, "pin_lease_s", self.pin_lease_s)?;
        set_time(&mut config.lock_wait, "lock_wait_s", self.lock_wait_s)?;
        set_time(&mut config.snapshot_interval, "snapshot_interval_s", self.snapshot_interval_s)?;
        set(&mut config.status_socket, self.status_socket);
        if let Some(kb) = self.segment_kb {
            config.segment_bytes = bytes("segment_kb", kb, KIB)? as usize;
        }
        // Nobody in Python takes buffers from the pool: it holds the shards' own.
        config.pool_bytes = config.bounce_bytes();
        if let Some(mb) = self.pool_mb {
            config.pool_bytes = bytes("pool_mb", mb, MIB)? as usize;
        }
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn bytes(option: &str, value: f64, unit: f64) -> Result<u64, String> {
    let bytes = value * unit;
    if !(0.0..=u64::MAX as f64 / 2.0).contains(&bytes) {
        return Err(format!("{option}: {value} is not a size"));
    }
    Ok(bytes.round() as u64)
}

fn set_bytes(field: &mut u64, option: &str, value: Option<f64>, unit: f64) -> Result<(), String> {
    if let Some(value) = value {
        *field = bytes(option, value, unit)?;
    }
    Ok(())
}

fn set_time(field: &mut Duration, option: &str, value: Option<f64>) -> Result<(), String> {
    if let Some(seconds) = value {
        *field = Duration::try_from_secs_f64(seconds).map_err(|error| format!("{option}: {seconds}: {error}"))?;
    }
    Ok(())
}
