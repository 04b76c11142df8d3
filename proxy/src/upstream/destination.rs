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

/// What a name or address turned out to be.
#[derive(Clone, Debug)]
pub enum Toward {
    /// A service port, with its rules.
    Service(Arc<Destination>),
    /// One endpoint that was dialled directly; rules of its service do not apply, its identity does.
    Endpoint(RouteBackend, Protocol),
    /// Outside the mesh.
    Outside(RouteBackend),
}

impl Toward {
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Service(destination) => destination.protocol,
            Self::Endpoint(_, protocol) => *protocol,
            Self::Outside(_) => Protocol::Detect,
        }
    }

    /// Labels until an endpoint is chosen.
    pub fn labels(&self) -> LabelId {
        match self {
            Self::Service(destination) => destination.labels,
            Self::Endpoint(route, _) | Self::Outside(route) => route.backend.labels,
        }
    }

    /// The resource name of the service, to note that it is used.
    pub fn service(&self) -> Option<&Arc<str>> {
        match self {
            Self::Service(destination) => Some(&destination.service.resource),
            Self::Endpoint(..) | Self::Outside(_) => None,
        }
    }

    /// The port of the service, where it is one.
    pub fn service_port(&self) -> Option<u16> {
        match self {
            Self::Service(destination) => Some(destination.port),
            Self::Endpoint(..) | Self::Outside(_) => None,
        }
    }

    /// The backend where no rule decides.
    pub fn own(&self) -> &RouteBackend {
        match self {
            Self::Service(destination) => &destination.own,
            Self::Endpoint(route, _) | Self::Outside(route) => route,
        }
    }
}
