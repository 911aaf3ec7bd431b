//! Turns a core module that wit-bindgen made into a component: `encode MODULE COMPONENT`.
//!
//! A program of its own, because jiji never encodes components and its development door (`xtask`) stays light.

use std::error::Error;
use std::process::ExitCode;

fn encode(module: &str, component: &str) -> Result<(), Box<dyn Error>> {
    let module = std::fs::read(module)?;
    let bytes = wit_component::ComponentEncoder::default().module(&module)?.validate(true).encode()?;
    std::fs::write(component, bytes)?;
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [module, component] = args.as_slice() else {
        eprintln!("usage: encode MODULE COMPONENT");
        return ExitCode::from(2);
    };
    match encode(module, component) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: failed to encode `{module}`: {error}");
            ExitCode::FAILURE
        }
    }
}
