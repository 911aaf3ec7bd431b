//! The same on many hosts at once, each with its own end.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use jiji_model::name::HostName;
use jiji_model::protocol::{Reply, Request, RunReport};

use super::link::HostLink;
use crate::fleet::FleetError;

/// What each host gave.
pub(super) type Ends<T> = BTreeMap<HostName, Result<T, FleetError>>;

/// Does something on every host at once, and waits for all.
pub(super) async fn all<'a, L: HostLink + 'a, T, F: Future<Output = Result<T, FleetError>>>(
    links: impl IntoIterator<Item = &'a L>,
    each: impl Fn(&'a L) -> F,
) -> Ends<T> {
    let each = &each;
    let ends = links.into_iter().map(|link| async move { (link.host().clone(), each(link).await) });
    join_all(ends).await.into_iter().collect()
}

/// Splits ends into good ones and errors.
pub(super) fn split<T>(ends: Ends<T>) -> (BTreeMap<HostName, T>, BTreeMap<HostName, FleetError>) {
    let (mut good, mut bad) = (BTreeMap::new(), BTreeMap::new());
    for (host, end) in ends {
        match end {
            Ok(value) => {
                good.insert(host, value);
            }
            Err(error) => {
                bad.insert(host, error);
            }
        }
    }
    (good, bad)
}

fn unexpected<L: HostLink>(link: &L, doing: &'static str) -> FleetError {
    FleetError::Unexpected { host: link.host().clone(), doing }
}

/// Asks for something that is done or not.
pub(super) async fn done<L: HostLink>(
    link: &L,
    request: Request,
    patience: Duration,
    doing: &'static str,
) -> Result<(), FleetError> {
    match link.ask(request, patience).await? {
        Reply::Done => Ok(()),
        _ => Err(unexpected(link, doing)),
    }
}

/// Asks for steps to be run or taken back.
pub(super) async fn ran<L: HostLink>(
    link: &L,
    request: Request,
    patience: Duration,
    doing: &'static str,
) -> Result<RunReport, FleetError> {
    match link.ask(request, patience).await? {
        Reply::Ran(report) => Ok(report),
        _ => Err(unexpected(link, doing)),
    }
}
