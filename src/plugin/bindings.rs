//! The contract's types on jiji's side, generated from `wit/next`.

/// `jiji:proxy`.
pub(super) mod proxy {
    wasmtime::component::bindgen!({
        path: ["wit/next/plan", "wit/next/proxy"],
        world: "jiji:proxy/plugin",
    });
}

/// `jiji:health`, with the shared records of [`proxy`].
pub(super) mod health {
    wasmtime::component::bindgen!({
        path: ["wit/next/plan", "wit/next/health"],
        world: "jiji:health/plugin",
        with: {
            "jiji:plan/types": crate::plugin::bindings::proxy::jiji::plan::types,
            "jiji:plan/log": crate::plugin::bindings::proxy::jiji::plan::log,
        },
    });
}

/// `jiji:mesh`, with the shared records of [`proxy`].
pub(super) mod mesh {
    wasmtime::component::bindgen!({
        path: ["wit/next/plan", "wit/next/mesh"],
        world: "jiji:mesh/plugin",
        with: {
            "jiji:plan/types": crate::plugin::bindings::proxy::jiji::plan::types,
            "jiji:plan/log": crate::plugin::bindings::proxy::jiji::plan::log,
        },
    });
}

/// The shared records.
pub(super) use proxy::jiji::plan::types;
