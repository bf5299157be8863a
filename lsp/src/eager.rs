//! A layer between the wire and the server: order, and safety from panics.
//!
//! The library runs handlers as concurrent futures, so a change may be applied after the request that was sent behind it, and a cancel
//! only runs when a place is free. Here every message is polled once the moment it arrives: a notification, which never awaits, is then
//! done, and a request has taken its snapshot of the document as it was when it was sent. A handler that panics is one error answer.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tower::Service;
use tower_lsp::ExitedError;
use tower_lsp::jsonrpc::{Error, ErrorCode, Id, Request, Response};

use crate::wire;

type Answer = Result<Option<Response>, ExitedError>;
type BoxedAnswer = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// How many requests may be under way at once: superseded ones are answered at once, so this is far above what an editor sends.
pub const CONCURRENCY: usize = 1024;

/// Polls each message once on arrival.
#[derive(Debug)]
pub struct Eager<S>(pub S);

impl<S> Service<Request> for Eager<S>
where
    S: Service<Request, Response = Option<Response>, Error = ExitedError>,
    S::Future: Send + 'static,
{
    type Response = Option<Response>;
    type Error = ExitedError;
    type Future = BoxedAnswer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ExitedError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> BoxedAnswer {
        if request.method() == wire::MALFORMED {
            return Box::pin(std::future::ready(Ok(wire::malformed_response(request))));
        }
        let id = request.id().cloned();
        let future = match catch_unwind(AssertUnwindSafe(|| self.0.call(request))) {
            Ok(future) => Box::pin(future),
            Err(panic) => return Box::pin(std::future::ready(Ok(panic_response(id, panic.as_ref())))),
        };
        let mut guarded = Guarded { id, future };
        match Pin::new(&mut guarded).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Box::pin(std::future::ready(answer)),
            Poll::Pending => Box::pin(guarded),
        }
    }
}

/// A handler's future whose panic is an error answer.
struct Guarded<F> {
    id: Option<Id>,
    future: Pin<Box<F>>,
}

impl<F: Future<Output = Answer>> Future for Guarded<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answer> {
        let future = &mut self.future;
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => Poll::Ready(Ok(panic_response(self.id.take(), panic.as_ref()))),
        }
    }
}

fn panic_response(id: Option<Id>, panic: &(dyn std::any::Any + Send)) -> Option<Response> {
    let reason = panic_text(panic);
    tracing::error!(reason, "a handler panicked");
    let mut error = Error::new(ErrorCode::InternalError);
    error.message = format!("a handler panicked: {reason}").into();
    id.map(|id| Response::from_error(id, error))
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts polls; a request needs two; `boom` panics at its second.
    struct Slow(Arc<AtomicUsize>);

    impl Service<Request> for Slow {
        type Response = Option<Response>;
        type Error = ExitedError;
        type Future = BoxedAnswer;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ExitedError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request) -> BoxedAnswer {
            let polls = self.0.clone();
            Box::pin(async move {
                polls.fetch_add(1, Ordering::SeqCst);
                let (method, id, _) = request.into_parts();
                if id.is_some() {
                    tokio::task::yield_now().await;
                }
                assert!(method != "boom", "as asked");
                Ok(id.map(|id| Response::from_ok(id, serde_json::Value::Null)))
            })
        }
    }

    #[tokio::test]
    async fn every_message_starts_on_arrival() {
        let polls = Arc::new(AtomicUsize::new(0));
        let mut service = Eager(Slow(polls.clone()));
        let request = service.call(Request::build("x").id(1).finish());
        let notification = service.call(Request::build("y").finish());
        assert_eq!(polls.load(Ordering::SeqCst), 2, "both were polled before anyone awaited them");
        assert!(request.await.unwrap().unwrap().is_ok());
        assert!(notification.await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_panic_is_one_error_answer() {
        let mut service = Eager(Slow(Arc::default()));
        let answer = service.call(Request::build("boom").id(7).finish()).await.unwrap().unwrap();
        assert_eq!(answer.id(), &Id::Number(7));
        assert!(answer.error().unwrap().message.contains("as asked"));
        assert!(service.call(Request::build("x").id(8).finish()).await.unwrap().unwrap().is_ok());
    }
}
