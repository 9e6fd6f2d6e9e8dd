//! What the process uses, as far as Linux tells it.

use std::{fs, time::SystemTime};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::gauge::ConstGauge,
    registry::Registry,
};

/// Tells when the process began, and at each look how much memory and how many descriptors it has.
#[derive(Clone, Copy, Debug)]
pub struct Process {
    began: f64,
}

impl Default for Process {
    fn default() -> Self {
        let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { began: began.as_secs_f64() }
    }
}

impl Process {
    /// Adds what there is.
    pub fn register(self, registry: &mut Registry) {
        registry.register_collector(Box::new(self));
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("process_start_time_seconds", "When the service began, in seconds since 1970.", self.began)?;
        if let Some(bytes) = resident_bytes() {
            gauge("process_resident_memory_bytes", "Memory of the service.", bytes)?;
        }
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            let count = u32::try_from(descriptors.count()).unwrap_or(u32::MAX);
            gauge("process_open_fds", "File descriptors that the service has open.", count.into())?;
        }
        Ok(())
    }
}

/// `VmRSS` (proc(5)).
fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u32 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(f64::from(kilobytes) * 1024.0)
}
