//! What the connections of a listener share, and the answer to each of their requests.

use std::sync::Arc;

use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use tokio::sync::watch;

use super::connections::Admitted;
use super::gate::Routes;
use super::tls::Tls;
use super::{ListenOptions, Stage};
use crate::server::body;
use crate::server::error::ApiError;
use crate::server::front::Front;
use crate::server::ops;
use crate::server::routes::error_style;

/// What the connections of a listener share.
pub struct Endpoint {
    pub routes: Routes,
    pub options: Arc<ListenOptions>,
    pub stage: watch::Receiver<Stage>,
    pub tls: Option<Arc<Tls>>,
}

impl Endpoint {
    /// Answers a request with the routes, or with the reason why it may not reach them; `refusal`
    /// is one that is known already.
    pub async fn answer(
        &self,
        mut request: Request,
        admitted: &Admitted,
        refusal: Option<ApiError>,
    ) -> Response {
        let front = Front::begin(&mut request, error_style);
        let connection = admitted.connection();
        let draining = *self.stage.borrow() >= Stage::Draining;
        let refusal = match ops::is_probe(request.uri().path()) {
            _ if refusal.is_some() => refusal,
            false if draining => Some(ApiError::Draining),
            false if connection.reserve => {
                admitted.record(|series| series.refused.inc());
                Some(ApiError::TooManyConnections)
            }
            false => None,
            true => {
                admitted.show_all();
                None
            }
        };
        let response = match refusal {
            Some(error) => {
                body::discard(request.into_body().into_data_stream()).await;
                error.into_response()
            }
            None => self.routes.respond(request).await,
        };
        front.finish(response)
    }
}

/// Waits until the server has reached a stage, or is gone.
pub async fn reached(stage: &mut watch::Receiver<Stage>, wanted: Stage) {
    // An error means that the server is gone.
    let _ = stage.wait_for(|stage| *stage >= wanted).await;
}
