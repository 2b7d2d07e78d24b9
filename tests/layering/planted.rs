//! Tests of the rules: they find planted violations and accept correct code.

use super::rules::violations;

fn assert_found(file: &str, text: &str, what: &str) {
    let found = violations(file, text);
    let hit = matches!(&found[..], [only] if only.contains(what));
    assert!(
        hit,
        "expected one violation with {what:?} in {file}: {text}\nfound: {found:#?}"
    );
}

fn assert_clean(file: &str, text: &str) {
    let found = violations(file, text);
    assert!(found.is_empty(), "{file}: {text}\nfound: {found:#?}");
}

#[test]
fn an_arrow_up_is_found_however_it_is_written() {
    for text in [
        "use crate::server::Router;",
        "use crate::{ticket::Ticket, server};",
        "use crate::{model as m, ticket::{self, Ticket}, server::{a, b as c}};",
        "fn f() { crate::server::run() }",
        "use super::server;",
        "mod inner { use super::super::server; }",
        "pub(in crate::server) struct A;",
    ] {
        let found = violations("src/registry/mod.rs", text);
        let hit = !found.is_empty() && found.iter().all(|line| line.contains("use server"));
        assert!(hit, "{text}\nfound: {found:#?}");
    }
    assert_found(
        "src/engine/runner.rs",
        "use super::super::text::Decoder;",
        "use text",
    );
    assert_found("src/metrics/mod.rs", "use super::ticket;", "use ticket");
    assert_found("src/model/mod.rs", "use crate::*;", "use *");
    assert_found("src/main.rs", "use tombola::engine;", "not cli");
    assert_found("src/extra/mod.rs", "use crate::ticket;", "not a layer");
}

#[test]
fn arrows_down_and_within_a_layer_are_fine() {
    assert_clean(
        "src/engine/runner.rs",
        "use super::{request, self}; use crate::engine::x;",
    );
    assert_clean(
        "src/engine/mod.rs",
        "use crate::{model, registry::Lease as L, ticket::*};",
    );
    assert_clean(
        "src/model/kv/mod.rs",
        "pub(super) fn f() { self.text.server() }",
    );
    assert_clean("src/main.rs", "fn main() { tombola::cli::run() }");
}

#[test]
fn comments_strings_and_tests_are_not_code() {
    assert_clean(
        "src/text/mod.rs",
        r##"
            //! crate::engine
            /// [`crate::engine`] /* unsafe
            /* crate::engine /* nested */ unsafe */
            const A: &str = "crate::engine \" unsafe"; const B: &[u8] = br#"unsafe " "#;
            const C: char = '"'; const D: u8 = b'\''; fn f<'a>(r#unsafe_: &'a str) {}
            #[cfg(test)]
            #[allow(unused)]
            mod tests { use crate::engine; fn g() { if true {} } }
            "##,
    );
    assert_clean("src/text/tests.rs", "use crate::engine;");
    let after = "#[cfg(test)] use crate::engine; use crate::server;";
    assert_found("src/text/mod.rs", after, "use server");
}

#[test]
fn strangers_are_found() {
    assert_found("src/ticket/format.rs", "use tokio::fs;", "tokio");
    assert_found(
        "src/ticket/mod.rs",
        "fn f(t: ::candle_core::Tensor) {}",
        "candle_core",
    );
    assert_found(
        "src/engine/scheduler/queue.rs",
        "use candle_core as c;",
        "candle_core",
    );
    for file in [
        "src/engine/scheduler.rs",
        "src/engine/policy/by_cost.rs",
        "src/engine/costs/mod.rs",
    ] {
        assert_found(file, "use candle_nn::ops;", "candle_nn");
    }
    assert_found(
        "src/server/openai.rs",
        "use candle_core::Tensor;",
        "candle_core",
    );
    assert_clean("src/engine/runner.rs", "use candle_core::Tensor;");
}

#[test]
fn unsafe_is_found_outside_its_homes() {
    let text = "fn f() { unsafe { g() } }";
    assert_found("src/model/loader.rs", text, "unsafe");
    assert_found(
        "src/text/mod.rs",
        "#[cfg(test)] mod t { unsafe fn f() {} }",
        "unsafe",
    );
    assert_clean("src/kernels/linear.rs", text);
    assert_clean("src/model/checkpoint.rs", text);
}

#[test]
fn decisions_by_dtype_or_device_are_found() {
    for text in [
        "fn f() { match d { DType::F32 => 1, _ => 2 } }",
        "fn f() { match d { A { x } => { 1 } (DType::F32, _) => 2 } }",
        "fn f() { match d { x if x == candle_core::DType::BF16 => 1 } }",
        "fn f() { if let Device::Cuda(d) = device {} }",
        "fn f() { if matches!(x.dtype(), DType::F32) {} }",
        "fn f() { x.dtype() != DType::F32 }",
        "fn f() { DType::F32 == x.dtype() }",
        "fn f() { device.is_cuda() }",
        "fn f() { match w { Weight::Quantized(q) => 1, _ => 2 } }",
        "use candle_core::DType::*;",
    ] {
        assert_found("src/engine/runner.rs", text, "decides by");
        assert_clean("src/kernels/linear.rs", text);
        assert_clean("src/model/device.rs", text);
    }
}

#[test]
fn naming_a_dtype_is_no_decision() {
    for text in [
        "use candle_core::{DType, Device};",
        "fn f() { let x = t.to_dtype(DType::F32)?; }",
        "fn f() { match n { 1 => { DType::F32 } 2 => DType::BF16, _ => g() } }",
        "fn f(d: DType) { g(d == other, Tensor::zeros(1, DType::F32, &Device::Cpu)) }",
    ] {
        assert_clean("src/engine/runner.rs", text);
    }
}
