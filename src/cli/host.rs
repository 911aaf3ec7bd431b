//! `jiji host exec`: this program as `jiji-host`, for `localhost` and for installs that carry no other.

use super::args::HostArgs;
use super::exit::Exit;
use super::failure::Failure;

/// Serves one session on standard input and output.
pub fn run(args: &HostArgs) -> Result<Exit, Failure> {
    if let Some(count) = jiji_host::reach::asked(&args.arguments) {
        return match jiji_host::reach::give(count) {
            Ok(()) => Ok(Exit::Done),
            Err(error) => Err(Failure::new(Exit::Internal, &error)),
        };
    }
    if args.arguments == [jiji_host::mesh::ARGUMENT_UP] {
        return match jiji_host::mesh::up(&jiji_host::Settings::default()) {
            Ok(()) => Ok(Exit::Done),
            Err(error) => Err(Failure::new(Exit::Internal, &error)),
        };
    }
    let settings = jiji_host::Settings::from_arguments(&args.arguments).ok_or_else(|| {
        Failure::text(Exit::Usage, "read the arguments of `jiji host`").hint("it is for jiji itself: `jiji host exec`")
    })?;
    jiji_host::session::lead_own_group();
    jiji_host::run(std::io::stdin(), std::io::stdout(), settings)
        .map_err(|error| Failure::new(Exit::Internal, &error))?;
    Ok(Exit::Done)
}
