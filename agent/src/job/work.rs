//! Maps requests to the work of their jobs.

use std::path::Path;

use boxlite_proto::message::{Failure, Request, Response};

use super::{Input, Output};
use crate::boot::mounts::BUILDER_DISK;
use crate::unpack::{UnpackError, Unpacked, unpack_below, unpack_in_root};
use crate::{inspect, pack};

/// The work that a job's thread does.
pub(crate) type Work = Box<dyn FnOnce(Input, Output) -> Response + Send>;

/// The work of a request, if the request is a job. `in_namespace`: whether the box's commands run in the PID
/// namespace of a main command.
pub(crate) fn of(request: Request, in_namespace: bool) -> Option<Work> {
    Some(match request {
        Request::UnpackLayer => {
            Box::new(|input, _| unpacked(unpack_in_root(Path::new(BUILDER_DISK), input)))
        }
        Request::CopyIn(request) => Box::new(move |input, _| {
            answer(unpack_below(&request, input), |Unpacked { entries, bytes }| {
                Response::Unpacked { entries, bytes }
            })
        }),
        Request::CopyOut(request) => {
            Box::new(move |_, output| match pack::pack(&request, output) {
                Ok(()) => Response::Done,
                Err(e) => Response::Failed(e.failure()),
            })
        }
        Request::Metrics => Box::new(|_, _| answer(inspect::metrics(), Response::Metrics)),
        Request::Processes => {
            Box::new(move |_, _| answer(inspect::processes(in_namespace), Response::Processes))
        }
        Request::Stat(request) => {
            Box::new(move |_, _| answer(inspect::stat(&request), Response::Stat))
        }
        _ => return None,
    })
}

fn unpacked(result: Result<Unpacked, UnpackError>) -> Response {
    match result {
        Ok(Unpacked { entries, bytes }) => Response::Unpacked { entries, bytes },
        Err(e) => Response::Failed(e.failure()),
    }
}

fn answer<T>(result: Result<T, Failure>, response: impl FnOnce(T) -> Response) -> Response {
    result.map_or_else(Response::Failed, response)
}
