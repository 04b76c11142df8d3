//! Checks how a backend is treated: balancing, limits, ejection, retry budget, breaker and fallback.

use std::{collections::HashSet, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use outrigger_proto::mesh::{self, fallback::Kind};

use super::{Checked, Fault, In, balancing, duration, each, named, percent, port, refuse, unknown};
use crate::{
    balance::Algorithm,
    config::view::{Policy, PolicySet, Subset, TlsMode},
    resilience::{
        breaker::BreakerPolicy,
        ejection::EjectionPolicy,
        fallback::{FallbackKind, FallbackPolicy},
        limits::LimitPolicy,
        retry_budget::RetryBudgetPolicy,
    },
    route::Target,
};

/// Bytes of a static fallback body.
const FALLBACK_BODY_BYTES: usize = 1 << 20;

pub(super) fn policy_set(set: &mesh::BackendPolicy) -> Checked<PolicySet> {
    let base = match &set.base {
        Some(base) => Arc::new(policy(base).in_field("base")?),
        None => Arc::default(),
    };
    let subsets = each("subsets", &set.subsets, |subset| {
        Ok(Subset {
            name: named(&subset.name, "name")?,
            labels: subset.labels.clone(),
            policy: match &subset.policy {
                Some(own) => Arc::new(policy(own).in_field("policy")?),
                None => Arc::clone(&base),
            },
        })
    })?;
    let mut seen = HashSet::new();
    for (index, subset) in subsets.iter().enumerate() {
        if !seen.insert(&subset.name) {
            let twice = Fault::new(format!("\"{}\" is listed twice", subset.name));
            return Err(twice.under("name").under(format_args!("subsets[{index}]")));
        }
    }
    Ok(PolicySet { base, subsets })
}

fn policy(policy: &mesh::Policy) -> Checked<Policy> {
    let pool = policy.pool.unwrap_or_default();
    let wait =
        |value: &Option<prost_types::Duration>, field: &str| duration(value.as_ref()).in_field(field).in_field("pool");
    let hash = match &policy.consistent_hash {
        Some(hash) => Some(Arc::new(balancing::hash(hash).in_field("consistent_hash")?)),
        None => None,
    };
    Ok(Policy {
        algorithm: match mesh::LoadBalancer::try_from(policy.load_balancer) {
            Ok(_) if hash.is_some() => Algorithm::Random,
            Ok(mesh::LoadBalancer::Unspecified) => Algorithm::default(),
            Ok(mesh::LoadBalancer::LeastRequest) => Algorithm::LeastRequest,
            Ok(mesh::LoadBalancer::LeastInFlight) => Algorithm::LeastInFlight,
            Ok(mesh::LoadBalancer::RoundRobin) => Algorithm::RoundRobin,
            Ok(mesh::LoadBalancer::Random) => Algorithm::Random,
            Ok(mesh::LoadBalancer::Passthrough) => Algorithm::Passthrough,
            Err(_) => return unknown(policy.load_balancer).in_field("load_balancer"),
        },
        hash,
        locality: match &policy.locality {
            Some(locality) => Some(Arc::new(balancing::locality(locality).in_field("locality")?)),
            None => None,
        },
        warmup: match &policy.warmup {
            Some(warmup) => Some(balancing::warmup(warmup).in_field("warmup")?),
            None => None,
        },
        limits: limits(policy.pool.as_ref()),
        connect_timeout: wait(&pool.connect_timeout, "connect_timeout")?,
        max_requests_per_connection: pool.max_requests_per_connection,
        http_idle_timeout: wait(&pool.http_idle_timeout, "http_idle_timeout")?,
        tcp_idle_timeout: wait(&pool.tcp_idle_timeout, "tcp_idle_timeout")?,
        max_connection_duration: wait(&pool.max_connection_duration, "max_connection_duration")?,
        max_concurrent_streams: pool.max_concurrent_streams,
        ejection: match &policy.outlier_detection {
            Some(detection) => Some(Arc::new(ejection(detection).in_field("outlier_detection")?)),
            None => None,
        },
        tls: match mesh::TlsMode::try_from(policy.tls) {
            Ok(mesh::TlsMode::Unspecified | mesh::TlsMode::Auto) => TlsMode::Auto,
            Ok(mesh::TlsMode::Disable) => TlsMode::Disable,
            Ok(mesh::TlsMode::Mesh) => TlsMode::Mesh,
            Err(_) => return unknown(policy.tls).in_field("tls"),
        },
        retry_budget: retry_budget(policy.retry_budget.as_ref()).in_field("retry_budget")?,
        breaker: match &policy.breaker {
            Some(value) => Some(Arc::new(breaker(value).in_field("breaker")?)),
            None => None,
        },
    })
}

pub(super) fn limits(pool: Option<&mesh::ConnectionPool>) -> LimitPolicy {
    pool.map_or_else(LimitPolicy::default, |pool| LimitPolicy {
        max_connections: pool.max_connections,
        max_pending_requests: pool.max_pending_requests,
        max_requests: pool.max_requests,
        max_retries: pool.max_retries,
    })
}

fn ejection(detection: &mesh::OutlierDetection) -> Checked<EjectionPolicy> {
    let share = |value: u32, field: &str| {
        if value <= 100 { Ok(value) } else { refuse(format!("{value} is no percentage, percentages are 0 to 100")) }
            .in_field(field)
    };
    Ok(EjectionPolicy {
        consecutive_5xx: detection.consecutive_5xx,
        consecutive_gateway_errors: detection.consecutive_gateway_errors,
        consecutive_local_failures: detection.consecutive_local_failures,
        split_local_errors: detection.split_local_errors,
        interval: duration(detection.interval.as_ref()).in_field("interval")?.unwrap_or(Duration::from_secs(10)),
        base_ejection_time: duration(detection.base_ejection_time.as_ref())
            .in_field("base_ejection_time")?
            .unwrap_or(Duration::from_secs(30)),
        max_ejection_percent: match share(detection.max_ejection_percent, "max_ejection_percent")? {
            0 => 10,
            percent => percent,
        },
        min_health_percent: share(detection.min_health_percent, "min_health_percent")?,
    })
}

fn retry_budget(budget: Option<&mesh::RetryBudget>) -> Checked<RetryBudgetPolicy> {
    let default = Policy::default().retry_budget;
    let Some(budget) = budget else { return Ok(default) };
    Ok(RetryBudgetPolicy {
        percent: percent(budget.percent).in_field("percent")?.unwrap_or(default.percent),
        min_retries_per_second: or(budget.min_retries_per_second, default.min_retries_per_second),
        window: duration(budget.window.as_ref()).in_field("window")?.unwrap_or(default.window),
    })
}

/// The value, or the default when it is zero.
const fn or(value: u32, default: u32) -> u32 {
    if value == 0 { default } else { value }
}

pub(super) fn breaker(breaker: &mesh::Breaker) -> Checked<BreakerPolicy> {
    let open = duration(breaker.open.as_ref()).in_field("open")?.unwrap_or(Duration::from_secs(5));
    let max_open = duration(breaker.max_open.as_ref()).in_field("max_open")?;
    if max_open.is_some_and(|max_open| max_open < open) {
        return refuse(format!("is shorter than open ({open:?})")).in_field("max_open");
    }
    Ok(BreakerPolicy {
        name: named(&breaker.name, "name")?,
        window: duration(breaker.window.as_ref()).in_field("window")?.unwrap_or(Duration::from_secs(10)),
        minimum_requests: or(breaker.minimum_requests, 20),
        failure_percent: percent(breaker.failure_percent).in_field("failure_percent")?.unwrap_or(50.0),
        open,
        max_open: max_open.unwrap_or(Duration::from_secs(60)).max(open),
        half_open_requests: or(breaker.half_open_requests, 1),
        half_open_successes: or(breaker.half_open_successes, 3),
        slow_call: duration(breaker.slow_call.as_ref()).in_field("slow_call")?,
        slow_percent: percent(breaker.slow_percent).in_field("slow_percent")?.unwrap_or(100.0),
        fallback: match &breaker.fallback {
            Some(value) => Some(Arc::new(fallback(value).in_field("fallback")?)),
            None => None,
        },
    })
}

fn fallback(fallback: &mesh::Fallback) -> Checked<FallbackPolicy> {
    let kind = match &fallback.kind {
        None => return refuse("says neither reply nor backend, or something this version does not know"),
        Some(Kind::Reply(reply)) => static_reply(reply).in_field("reply")?,
        Some(Kind::Backend(backend)) => FallbackKind::Backend(Target {
            service: named(&backend.service, "service").in_field("backend")?,
            port: port(backend.port).in_field("port").in_field("backend")?,
            subset: backend.subset.as_str().into(),
        }),
    };
    Ok(FallbackPolicy { kind, max_concurrent: or(fallback.max_concurrent, 100) })
}

fn static_reply(reply: &mesh::StaticReply) -> Checked<FallbackKind> {
    let status = match u16::try_from(reply.status) {
        Ok(0) => StatusCode::OK,
        // An interim response is no answer.
        Ok(status @ 200..=599) => StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
        _ => return refuse(format!("{} is no final status, those are 200 to 599", reply.status)).in_field("status"),
    };
    let content_type = match reply.content_type.as_str() {
        "" => None,
        value => match HeaderValue::from_str(value) {
            Ok(value) => Some(value),
            Err(_) => return refuse("is no valid header value").in_field("content_type"),
        },
    };
    if reply.body.len() > FALLBACK_BODY_BYTES {
        return refuse(format!("is longer than {FALLBACK_BODY_BYTES} bytes")).in_field("body");
    }
    Ok(FallbackKind::Reply { status, content_type, body: reply.body.clone() })
}
