use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, Result,
};

const PREFIX: &str = "tombola";

/// Builds series under the common prefix and registers them.
pub(super) struct Registrar<'a>(pub(super) &'a Registry);

impl Registrar<'_> {
    fn register<C: Collector + Clone + 'static>(&self, series: C) -> Result<C> {
        self.0.register(Box::new(series.clone()))?;
        Ok(series)
    }

    /// A gauge of whole numbers.
    pub(super) fn int_gauge(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.register(IntGauge::with_opts(opts(name, help))?)
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> Result<Gauge> {
        self.register(Gauge::with_opts(opts(name, help))?)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.register(IntCounter::with_opts(opts(name, help))?)
    }

    /// One counter per value of `label`.
    pub(super) fn counter_vec(&self, name: &str, help: &str, label: &str) -> Result<IntCounterVec> {
        self.counter_vecs(name, help, &[label])
    }

    /// One counter per combination of the values of `labels`.
    pub(super) fn counter_vecs(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec> {
        self.register(IntCounterVec::new(opts(name, help), labels)?)
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
        self.register(Histogram::with_opts(histogram_opts(name, help, buckets))?)
    }

    /// One histogram per value of `label`.
    pub(super) fn histogram_vec(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        label: &str,
    ) -> Result<HistogramVec> {
        let opts = histogram_opts(name, help, buckets);
        self.register(HistogramVec::new(opts, &[label])?)
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(PREFIX)
}

fn histogram_opts(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec())
}
