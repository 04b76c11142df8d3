//! One port of one service, as traffic sees it: the rules that decide, and what they lead to.

use std::sync::Arc;

use super::backend::RouteBackend;
use crate::{
    config::view::{self, Protocol},
    route::RouteTable,
    telemetry::LabelId,
};

/// Where connections and requests to a service port go.
#[derive(Debug)]
pub struct Destination {
    pub service: Arc<view::Service>,
    pub port: u16,
    pub protocol: Protocol,
    /// `None`: no rules; everything goes to `own`.
    pub routes: Option<RouteTable<RouteBackend>>,
    /// The service's own endpoints.
    pub own: RouteBackend,
    /// Labels for requests that reach no endpoint.
    pub labels: LabelId,
    /// Every service this was built from: unchanged ones mean that it can be kept.
    pub(super) built_from: Vec<(Arc<str>, Option<Arc<view::Service>>)>,
}
