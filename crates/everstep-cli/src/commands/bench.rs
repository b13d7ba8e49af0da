//! `everstep bench`: to be measured.

use crate::fail::Fail;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) async fn run(_args: Args) -> Result<(), Fail> {
    Err(Fail::usage("pending"))
}
