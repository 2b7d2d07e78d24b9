//! Writers: one per caller and alias, so that each knows what its alias points at.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::sleep;

use crate::http::Connection;
use crate::site::Site;
use crate::timeline::State;

/// Replaces the alias `moving` of a caller, with its contents in turn.
pub async fn replace(site: Arc<Site>, caller: usize) {
    let mut rng = StdRng::seed_from_u64(1000 + caller as u64);
    let me = &site.callers[caller];
    let key = me.key.as_deref();
    let mut turns = me.turns().cycle().skip(1);
    while site.goes_on() {
        sleep(Duration::from_millis(rng.random_range(300..900))).await;
        if rng.random_bool(0.2) {
            record(&site, break_off(&site, key, rng.random()).await);
        }
        let Some(next) = turns.next() else { return };
        me.moving.sending(State::Content(next));
        record(&site, site.put(key, "moving", next, true).await);
        me.moving.acknowledged();
    }
}

/// Uploads and deletes the alias `fleeting` of a caller.
pub async fn come_and_go(site: Arc<Site>, caller: usize) {
    let mut rng = StdRng::seed_from_u64(2000 + caller as u64);
    let me = &site.callers[caller];
    let key = me.key.as_deref();
    while site.goes_on() {
        me.fleeting.sending(State::Content(me.guest()));
        record(&site, site.put(key, "fleeting", me.guest(), false).await);
        me.fleeting.acknowledged();
        sleep(Duration::from_millis(rng.random_range(200..1500))).await;
        me.fleeting.sending(State::Absent);
        record(&site, site.delete(key, "fleeting").await);
        me.fleeting.acknowledged();
        sleep(Duration::from_millis(rng.random_range(50..500))).await;
    }
}

/// Leaves in the middle of an upload under a name that is never published.
async fn break_off(site: &Site, key: Option<&str>, share: f64) -> anyhow::Result<()> {
    let request = site.upload(key, "unborn", 0, false);
    let mut connection = Connection::open(site.address).await?;
    let sent = connection.send_part(&request, share * 0.99).await;
    site.tally.count(|counts| counts.broken_uploads += 1);
    sent.context("half an upload")
}

fn record(site: &Site, outcome: anyhow::Result<()>) {
    if let Err(error) = outcome {
        site.tally.violation(format!("{error:#}"));
    }
}
