//! What an engine says of itself, as OpenMetrics text: [`Status`] and the latencies, under names as Prometheus has them.
//!
//! Every family begins with `saltern_`; sizes are in bytes, times in seconds, counters end in `_total`. Nothing here is by salt or by
//! key: their number is not bounded. [`Engine::salts`] has the salts by page.
//!
//! There is no server in the engine: a host serves the text from where it serves its own.

use std::borrow::Cow;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::config::Eviction;
use crate::engine::Engine;
use crate::status::{Counters, ShardStatus, Status, VolumeStatus};
use crate::watch::{Distribution, Distributions};

/// Bounds of the buckets of loads and stores, in seconds: from a fast device's answer to the deadlines.
const OBJECT_BOUNDS: [f64; 17] =
    [50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// Bounds of the buckets of lookups, in seconds: from one key in memory to a disk that hangs.
const LOOKUP_BOUNDS: [f64; 13] = [250e-9, 500e-9, 1e-6, 2.5e-6, 5e-6, 10e-6, 25e-6, 100e-6, 1e-3, 0.01, 0.1, 1.0, 2.5];

impl Engine {
    /// What [`Engine::status`] says, and histograms of the latencies, as OpenMetrics text (`application/openmetrics-text;
    /// version=1.0.0`), which ends in `# EOF`. Blocks as `status` does.
    pub fn metrics(&self) -> String {
        let mut registry = Registry::with_prefix("saltern");
        registry.register_collector(Box::new(Moment { status: self.status(), latencies: self.core.distributions() }));
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &registry) {
            unreachable!("text takes all that is written: {error}");
        }
        text
    }
}

/// What is encoded.
#[derive(Debug)]
struct Moment {
    status: Status,
    latencies: Distributions,
}

/// Labels of one sample: names and values.
type Labels<'a> = [(&'static str, Cow<'a, str>)];

/// A shard's value, with the label that tells it from the shard's others.
type ByKind = (Option<(&'static str, &'static str)>, u64);

/// A family of samples, told apart by one label.
type ByLabel<'a, T> = &'a [(&'static str, T)];

impl Collector for Moment {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        out.info(&self.status)?;
        out.gauges(&self.status)?;
        out.shards(&self.status.shards)?;
        out.volumes(&self.status.volumes)?;
        out.counters(&self.status.counters)?;
        let Distributions { store, load, lookup, disk_lookup } = &self.latencies;
        out.histogram("store_duration", "Time of a store, from the call to the answer", store, &OBJECT_BOUNDS)?;
        out.histogram("load_duration", "Time of a load, from the call to the answer", load, &OBJECT_BOUNDS)?;
        let help = "Time of a batch of lookups answered from memory; about one in 64 is measured";
        out.histogram("lookup_duration", help, lookup, &LOOKUP_BOUNDS)?;
        let help = "Time of a key for which the disk was asked";
        out.histogram("disk_lookup_duration", help, disk_lookup, &LOOKUP_BOUNDS)
    }
}

/// Writes families.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn family(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        write: Write<'_>,
    ) -> fmt::Result {
        write(self.0.encode_descriptor(name, help, unit, kind)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.family(name, help, None, MetricType::Gauge, &mut |mut metric| metric.encode_gauge(&value))
    }

    fn bytes(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.family(name, help, Some(&Unit::Bytes), MetricType::Gauge, &mut |mut metric| metric.encode_gauge(&value))
    }

    fn counter(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        self.family(name, help, unit, MetricType::Counter, &mut |mut metric| {
            metric.encode_counter::<NoLabelSet, _, f64>(&value, None)
        })
    }

    fn counter_by(&mut self, name: &str, help: &str, label: &'static str, values: ByLabel<'_, u64>) -> fmt::Result {
        self.family(name, help, None, MetricType::Counter, &mut |mut metric| {
            values.iter().try_for_each(|(of, value)| {
                metric.encode_family(&[(label, *of)])?.encode_counter::<NoLabelSet, _, f64>(value, None)
            })
        })
    }

    fn histogram(&mut self, name: &str, help: &str, values: &Distribution, bounds: &[f64]) -> fmt::Result {
        let uppers = bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = uppers.zip(values.between(bounds)).collect();
        let (sum, count) = (values.sum_seconds(), buckets.iter().map(|(_, count)| count).sum());
        self.family(name, help, Some(&Unit::Seconds), MetricType::Histogram, &mut |mut metric| {
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        })
    }

    fn info(&mut self, status: &Status) -> fmt::Result {
        let eviction = match status.eviction {
            Eviction::Host => "host",
            Eviction::Engine { policy, .. } => policy.name(),
        };
        let text = |value: &dyn fmt::Display| Cow::Owned(value.to_string());
        let labels: &Labels<'_> = &[
            ("version", Cow::Borrowed(env!("CARGO_PKG_VERSION"))),
            ("dir", Cow::Borrowed(&status.volumes[0].medium.dir)),
            ("layout", text(&status.layout)),
            ("file_system", Cow::Borrowed(&status.volumes[0].medium.file_system)),
            ("eviction", Cow::Borrowed(eviction)),
        ];
        self.family("engine", "The engine and its directory", None, MetricType::Info, &mut |mut metric| {
            metric.encode_info(&labels)
        })
    }

    fn gauges(&mut self, status: &Status) -> fmt::Result {
        self.gauge(
            "healthy",
            "Whether every shard runs and the directory is the one that was opened",
            u64::from(status.is_healthy),
        )?;
        self.gauge("recovered", "Whether the scan of the directory is complete", u64::from(status.recovered))?;
        self.gauge("objects", "Objects in the index", status.objects)?;
        self.gauge("latent_objects", "Objects that are counted, but not in the index", status.latent_objects)?;
        self.bytes("used", "Bytes of objects", status.used_bytes)?;
        self.bytes("reserved", "Bytes reserved by stores in flight", status.reserved_bytes)?;
        if let Some(bytes) = status.capacity_bytes {
            self.bytes("capacity", "The configured capacity", bytes)?;
        }
        self.gauge("salts", "Salts seen, and those with a quota", status.salts)?;
        self.gauge("queued_objects", "Objects queued or in flight", status.queued_objects)?;
        self.gauge("waiting_stores", "Stores that wait for room", status.waiting_stores)?;
        self.gauge("evicting_objects", "Victims that are not removed yet", status.evicting_objects)?;
        self.gauge("spares", "Files kept to be overwritten", status.spares.count)?;
        self.bytes("spares", "Bytes of files kept to be overwritten", status.spares.bytes)?;
        self.bytes("spares_limit", "Most bytes of files kept to be overwritten", status.spares.limit_bytes)?;
        self.bytes("pool", "Size of the pool of host buffers", status.pool.bytes as u64)?;
        self.bytes("pool_used", "Bytes of the pool that are in use", status.pool.used_bytes as u64)
    }

    fn shards(&mut self, shards: &[ShardStatus]) -> fmt::Result {
        self.by_shard("shard_up", "Whether the shard's thread runs", None, shards, &|shard| {
            vec![(None, u64::from(shard.is_running))]
        })?;
        self.by_shard("shard_waiting", "Operations that wait at the shard", None, shards, &|shard| {
            let queues = &shard.queues;
            vec![
                (Some(("kind", "new")), queues.mailbox),
                (Some(("kind", "load")), queues.waiting_loads),
                (Some(("kind", "store")), queues.waiting_stores),
                (Some(("kind", "delete")), queues.waiting_deletes),
                (Some(("kind", "eviction")), queues.waiting_evictions),
            ]
        })?;
        self.by_shard("shard_active", "Operations whose file is open", None, shards, &|shard| {
            let queues = &shard.queues;
            vec![(Some(("kind", "load")), queues.active_loads), (Some(("kind", "store")), queues.active_stores)]
        })?;
        self.by_shard("shard_requests_in_flight", "Requests that the kernel has", None, shards, &|shard| {
            vec![(None, shard.queues.requests_in_flight)]
        })?;
        let help = "Bytes that the kernel was asked to move";
        self.by_shard("shard_in_flight", help, Some(&Unit::Bytes), shards, &|shard| {
            let queues = &shard.queues;
            vec![
                (Some(("kind", "load")), queues.load_bytes_in_flight),
                (Some(("kind", "store")), queues.store_bytes_in_flight),
            ]
        })
    }

    fn by_shard(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        shards: &[ShardStatus],
        values: &dyn Fn(&ShardStatus) -> Vec<ByKind>,
    ) -> fmt::Result {
        self.family(name, help, unit, MetricType::Gauge, &mut |mut metric| {
            for (number, shard) in shards.iter().enumerate() {
                for (label, value) in values(shard) {
                    let mut labels = vec![("shard", number.to_string())];
                    labels.extend(label.map(|(name, of)| (name, of.to_owned())));
                    metric.encode_family(&labels)?.encode_gauge(&value)?;
                }
            }
            Ok(())
        })
    }

    fn volumes(&mut self, volumes: &[VolumeStatus]) -> fmt::Result {
        let bytes = Some(&Unit::Bytes);
        self.by_volume("volume_up", "Whether the volume takes part", None, volumes, &|volume| {
            Some(u64::from(volume.is_up))
        })?;
        self.by_volume("volume_writable", "Whether the volume takes stores", None, volumes, &|volume| {
            Some(u64::from(volume.is_up && volume.read_only.is_none()))
        })?;
        self.by_volume("volume_used", "Bytes of the volume's objects", bytes, volumes, &|volume| {
            Some(volume.used_bytes)
        })?;
        self.by_volume("volume_reserved", "Bytes reserved by stores in flight", bytes, volumes, &|volume| {
            Some(volume.reserved_bytes)
        })?;
        let help = "The configured capacity of the volume";
        self.by_volume("volume_capacity", help, bytes, volumes, &|volume| volume.capacity_bytes)?;
        let help = "Bytes that the volume's file system has free";
        self.by_volume("volume_free", help, bytes, volumes, &|volume| Some(volume.free_bytes))?;
        let help = "Size of the volume's file system";
        self.by_volume("volume_size", help, bytes, volumes, &|volume| Some(volume.disk_bytes))?;
        let help = "Bytes of the volume's files kept to be overwritten";
        self.by_volume("volume_spares", help, bytes, volumes, &|volume| Some(volume.spares.bytes))
    }

    /// A family with a sample for each volume that has a value; none when none has.
    fn by_volume(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        volumes: &[VolumeStatus],
        value: &dyn Fn(&VolumeStatus) -> Option<u64>,
    ) -> fmt::Result {
        if volumes.iter().all(|volume| value(volume).is_none()) {
            return Ok(());
        }
        self.family(name, help, unit, MetricType::Gauge, &mut |mut metric| {
            for (number, volume) in volumes.iter().enumerate() {
                if let Some(value) = value(volume) {
                    let labels = [("volume", number.to_string()), ("dir", volume.medium.dir.clone())];
                    metric.encode_family(&labels)?.encode_gauge(&value)?;
                }
            }
            Ok(())
        })
    }

    fn counters(&mut self, counters: &Counters) -> fmt::Result {
        // Named one by one, so that a new counter is not forgotten here.
        let Counters {
            lookup_hits,
            lookup_misses,
            loads,
            load_misses,
            load_errors,
            loaded_bytes,
            stores,
            restores,
            stores_refused,
            stores_over_quota,
            stores_not_admitted,
            store_errors,
            stored_bytes,
            deletes,
            deletes_refused,
            evictions,
            evicted_bytes,
            quota_evictions,
            evictions_in_use,
            eviction_errors,
            damaged,
            twins,
            lost_objects,
            timeouts,
            bounced_bytes,
            recycled,
            checksum_failures,
            ledger_underflows,
        } = *counters;
        let bytes = Some(&Unit::Bytes);
        let answers = &[("hit", lookup_hits), ("miss", lookup_misses)];
        self.counter_by("lookups", "Keys looked up", "result", answers)?;
        let answers = &[("loaded", loads), ("miss", load_misses), ("error", load_errors)];
        self.counter_by("loads", "Loads of objects", "result", answers)?;
        self.counter("loaded", "Bytes loaded", bytes, loaded_bytes)?;
        let answers = &[
            ("stored", stores),
            ("present", restores),
            ("full", stores_refused),
            ("over_quota", stores_over_quota),
            ("not_admitted", stores_not_admitted),
            ("error", store_errors),
        ];
        self.counter_by("stores", "Stores of objects", "result", answers)?;
        self.counter("stored", "Bytes stored", bytes, stored_bytes)?;
        self.counter("recycled_stores", "Stores that overwrote a file kept for it", None, recycled)?;
        self.counter_by(
            "deletes",
            "Deletes of objects",
            "result",
            &[("deleted", deletes), ("in_use", deletes_refused)],
        )?;
        let reasons = &[("capacity", evictions.saturating_sub(quota_evictions)), ("quota", quota_evictions)];
        self.counter_by("evictions", "Objects evicted", "reason", reasons)?;
        self.counter("evicted", "Bytes evicted", bytes, evicted_bytes)?;
        self.counter("evictions_in_use", "Victims passed over because they were in use", None, evictions_in_use)?;
        self.counter("eviction_errors", "Evictions that failed", None, eviction_errors)?;
        self.counter("damaged_objects", "Objects whose file had vanished or had another size", None, damaged)?;
        self.counter("twin_files", "Second files of objects, on another volume, that were removed", None, twins)?;
        self.counter("lost_objects", "Objects that went with volumes that failed", None, lost_objects)?;
        self.counter("checksum_failures", "Loads with a wrong checksum", None, checksum_failures)?;
        self.counter("timeouts", "Batches that their deadline ended", None, timeouts)?;
        self.counter("bounced", "Bytes copied because O_DIRECT could not take them", bytes, bounced_bytes)?;
        self.counter("ledger_underflows", "Attempts to take the ledger below zero: a defect", None, ledger_underflows)
    }
}

/// Writes the samples of a family.
type Write<'a> = &'a mut dyn FnMut(MetricEncoder<'_>) -> fmt::Result;
