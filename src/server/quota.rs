//! Limits of each tenant: requests and tokens in progress, and stored tickets.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;

use super::caller::Caller;
use super::error::ApiError;
use crate::access::{Tenant, TenantLimit, TenantLimits};

/// Weight of the last request in the moving average of their durations.
const SMOOTHING: f64 = 0.2;

/// Longest `Retry-After`, in seconds.
const MAX_RETRY: f64 = 60.0;

/// What each tenant has in progress. Tenants come from the key file, so there are few.
///
/// A concurrent map, since tenants share nothing: [`Quota::store`] counts all tickets of a tenant
/// while it holds the tenant's entry, and the requests of others do not wait for that, unless their
/// entries are in the same shard. Nothing holds two entries at once.
#[derive(Clone, Debug, Default)]
pub struct Quota(Arc<InProgress>);

#[derive(Debug, Default)]
struct InProgress {
    tenants: DashMap<Tenant, Usage>,
    /// Requests of all callers.
    requests: AtomicUsize,
}

/// What one tenant has in progress.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    requests: usize,
    tokens: usize,
    /// Uploads that are not published yet, and their bytes.
    uploads: usize,
    upload_bytes: u64,
    /// Mean duration of a request in seconds, once one has ended.
    mean_seconds: f64,
}

impl Quota {
    /// Admits a completion request, until the returned permit is dropped.
    ///
    /// # Errors
    /// [`ApiError::TenantBusy`] if the caller's tenant has as many in progress as it may.
    pub fn enter(&self, caller: &Caller) -> Result<RequestPermit, ApiError> {
        if let Some(tenant) = &caller.tenant {
            let mut usage = self.0.tenants.entry(tenant.clone()).or_default();
            if let Some(most) = caller.limits.max_requests.filter(|&n| usage.requests >= n) {
                return Err(usage.busy(TenantLimit::Requests(most)));
            }
            usage.requests += 1;
        }
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        Ok(RequestPermit {
            quota: self.clone(),
            tenant: caller.tenant.clone(),
            limits: caller.limits,
            tokens: 0,
            begun: Instant::now(),
        })
    }

    /// Number of the tenant's completion requests in progress, or of all callers'.
    pub fn requests(&self, tenant: Option<&Tenant>) -> usize {
        match tenant {
            Some(tenant) => self.0.tenants.get(tenant).map_or(0, |usage| usage.requests),
            None => self.0.requests.load(Ordering::Relaxed),
        }
    }

    /// Admits an upload of `file_bytes` bytes, until the returned permit is dropped. `stored`
    /// counts what the tenant owns; it is called while the tenant's entry is held, so that an
    /// upload that another request publishes meanwhile counts at least once.
    ///
    /// # Errors
    /// [`ApiError::TenantStorage`] if the tenant owns as much as it may.
    pub fn store(
        &self,
        caller: &Caller,
        stored: impl FnOnce() -> Stored,
        file_bytes: u64,
    ) -> Result<StorePermit, ApiError> {
        let mut permit = StorePermit {
            quota: self.clone(),
            tenant: None,
            bytes: file_bytes,
        };
        let Some(tenant) = &caller.tenant else {
            return Ok(permit);
        };
        let mut usage = self.0.tenants.entry(tenant.clone()).or_default();
        let stored = stored();
        let tickets = stored.tickets + usage.uploads + 1;
        let bytes = stored.bytes + usage.upload_bytes + file_bytes;
        let reached = match caller.limits {
            TenantLimits {
                max_tickets: Some(most),
                ..
            } if tickets > most => Some(TenantLimit::Tickets(most)),
            TenantLimits {
                max_ticket_mib: Some(most),
                ..
            } if bytes > most.saturating_mul(1 << 20) => Some(TenantLimit::TicketMib(most)),
            _ => None,
        };
        if let Some(limit) = reached {
            return Err(ApiError::TenantStorage(limit));
        }
        usage.uploads += 1;
        usage.upload_bytes += file_bytes;
        permit.tenant = Some(tenant.clone());
        Ok(permit)
    }
}

impl Usage {
    /// The refusal at a limit, with the time after which a request of this tenant ends on average.
    fn busy(&self, limit: TenantLimit) -> ApiError {
        let wait = self.mean_seconds / self.requests.max(1) as f64;
        ApiError::TenantBusy {
            limit,
            retry_after: wait.clamp(1.0, MAX_RETRY).ceil() as u64,
        }
    }

    fn ended(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        if self.mean_seconds == 0.0 {
            self.mean_seconds = seconds;
        }
        self.mean_seconds += SMOOTHING * (seconds - self.mean_seconds);
    }
}

/// Bytes of the largest file that the caller may upload, at most `most`.
pub fn largest_file(caller: &Caller, most: u64) -> u64 {
    let own = caller.limits.max_ticket_mib;
    own.map_or(most, |mib| most.min(mib.saturating_mul(1 << 20)))
}

/// The files that a tenant owns, served or not, without the one that an upload replaces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stored {
    pub tickets: usize,
    pub bytes: u64,
}

/// Place of a completion request among those of its tenant.
#[derive(Debug)]
pub struct RequestPermit {
    quota: Quota,
    tenant: Option<Tenant>,
    limits: TenantLimits,
    tokens: usize,
    begun: Instant,
}

impl RequestPermit {
    /// Takes `tokens` from what the tenant may have in progress, until the permit is dropped.
    ///
    /// # Errors
    /// [`ApiError::TenantBusy`] if that is more than is left, and [`ApiError::Invalid`] if it is
    /// more than there ever is.
    pub fn take_tokens(&mut self, tokens: usize) -> Result<(), ApiError> {
        let Some(tenant) = &self.tenant else {
            return Ok(());
        };
        let mut usage = self.quota.0.tenants.entry(tenant.clone()).or_default();
        if let Some(most) = self.limits.max_queued_tokens {
            if tokens > most {
                let problem = format!(
                    "and the prompts come to {tokens} tokens over all choices; the limit of this \
                     tenant is {most}"
                );
                return Err(ApiError::invalid("max_tokens", problem));
            }
            if usage.tokens + tokens > most {
                return Err(usage.busy(TenantLimit::Tokens(most)));
            }
        }
        usage.tokens += tokens;
        self.tokens += tokens;
        Ok(())
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.quota.0.requests.fetch_sub(1, Ordering::Relaxed);
        let Some(tenant) = &self.tenant else { return };
        if let Some(mut usage) = self.quota.0.tenants.get_mut(tenant) {
            usage.requests -= 1;
            usage.tokens -= self.tokens;
            // A refused request says nothing about the others.
            if self.tokens > 0 {
                usage.ended(self.begun.elapsed());
            }
        }
    }
}

/// Place of an upload among what its tenant may own.
#[derive(Debug)]
pub struct StorePermit {
    quota: Quota,
    tenant: Option<Tenant>,
    bytes: u64,
}

impl Drop for StorePermit {
    fn drop(&mut self) {
        let Some(tenant) = &self.tenant else { return };
        if let Some(mut usage) = self.quota.0.tenants.get_mut(tenant) {
            usage.uploads -= 1;
            usage.upload_bytes -= self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn caller(tenant: Option<&str>, limits: TenantLimits) -> Caller {
        Caller {
            tenant: tenant.map(|name| name.parse().unwrap()),
            limits,
            ..Caller::default()
        }
    }

    #[test]
    fn a_tenant_at_its_limit_waits_and_others_do_not() {
        let quota = Quota::default();
        let limits = TenantLimits {
            max_requests: Some(2),
            ..TenantLimits::default()
        };
        let [acme, other] = ["acme", "other"].map(|name| caller(Some(name), limits));
        let permits = [quota.enter(&acme).unwrap(), quota.enter(&acme).unwrap()];
        let refused = quota.enter(&acme).unwrap_err();
        assert!(matches!(refused, ApiError::TenantBusy { .. }), "{refused}");
        let permit = quota.enter(&other).unwrap();
        let requests = |caller: &Caller| quota.requests(caller.tenant.as_ref());
        assert_eq!((requests(&acme), requests(&other)), (2, 1));
        assert_eq!(quota.requests(None), 3);
        drop((permits, permit));
        assert_eq!((quota.requests(None), requests(&acme)), (0, 0));
        quota.enter(&acme).unwrap();
        // The operator has no limits.
        let operator = caller(None, TenantLimits::default());
        let many: Vec<_> = (0..9).map(|_| quota.enter(&operator).unwrap()).collect();
        assert_eq!(many.len(), 9);
    }

    #[test]
    fn tokens_return_when_a_request_ends() {
        let quota = Quota::default();
        let limits = TenantLimits {
            max_queued_tokens: Some(100),
            ..TenantLimits::default()
        };
        let acme = caller(Some("acme"), limits);
        let mut first = quota.enter(&acme).unwrap();
        first.take_tokens(70).unwrap();
        let mut second = quota.enter(&acme).unwrap();
        let busy = second.take_tokens(31).unwrap_err();
        assert!(busy.to_string().contains("100 tokens"), "{busy}");
        second.take_tokens(30).unwrap();
        drop(first);
        quota.enter(&acme).unwrap().take_tokens(70).unwrap();
        let never = quota.enter(&acme).unwrap().take_tokens(101).unwrap_err();
        assert!(matches!(never, ApiError::Invalid { .. }), "{never}");
    }

    #[test]
    fn limits_hold_for_requests_at_once() {
        const MOST: usize = 3;
        let quota = Quota::default();
        let limits = TenantLimits {
            max_requests: Some(MOST),
            ..TenantLimits::default()
        };
        let callers = ["acme", "other"].map(|name| caller(Some(name), limits));
        let running = [AtomicUsize::new(0), AtomicUsize::new(0)];
        thread::scope(|scope| {
            for i in 0..16 {
                let (quota, caller, running) = (&quota, &callers[i % 2], &running[i % 2]);
                scope.spawn(move || {
                    for _ in 0..1000 {
                        let Ok(permit) = quota.enter(caller) else {
                            continue;
                        };
                        let before = running.fetch_add(1, Ordering::SeqCst);
                        assert!(before < MOST, "{before} requests run already");
                        running.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                });
            }
        });
        assert!(quota.0.tenants.iter().all(|usage| usage.requests == 0));
    }

    #[test]
    fn other_tenants_get_in_while_the_tickets_of_one_are_counted() {
        let quota = Quota::default();
        let of = |name: &str| caller(Some(name), TenantLimits::default());
        let (sender, entered) = mpsc::channel();
        thread::scope(|scope| {
            let counting = || {
                for i in 0..64 {
                    let (quota, caller, sender) = (&quota, of(&format!("t{i}")), sender.clone());
                    scope.spawn(move || sender.send(quota.enter(&caller).is_ok()));
                }
                // Those of the same shard do wait.
                assert_eq!(entered.recv_timeout(Duration::from_secs(20)), Ok(true));
                Stored::default()
            };
            quota.store(&of("acme"), counting, 1).unwrap();
        });
    }

    #[test]
    fn uploads_in_progress_count_as_stored() {
        let quota = Quota::default();
        let limits = TenantLimits {
            max_tickets: Some(3),
            max_ticket_mib: Some(10),
            ..TenantLimits::default()
        };
        let acme = caller(Some("acme"), limits);
        let one = Stored {
            tickets: 1,
            bytes: 1 << 20,
        };
        let first = quota.store(&acme, || one, 2 << 20).unwrap();
        let large = quota.store(&acme, || one, 8 << 20).unwrap_err();
        assert!(large.to_string().contains("10 MiB"), "{large}");
        let second = quota.store(&acme, || one, 7 << 20).unwrap();
        let third = quota.store(&acme, || one, 0).unwrap_err();
        assert!(third.to_string().contains("3 tickets"), "{third}");
        drop((first, second));
        quota.store(&acme, || one, 8 << 20).unwrap();
    }
}
