//! Pipelines: order, verification between passes, refusals, panics, texts.

use crate::{in_function, parse};
use lapidary_ir::pipeline::parse_pipeline;
use lapidary_ir::{Event, IrContext, IrError, Op, PassFailure, Pipeline, View, nn};

const X: &str = "tensor<2x8x64xf32>";

fn two_equal() -> String {
    in_function(&format!(
        "%0 = nn.softmax %x : {X}\n%1 = nn.softmax %x : {X}\n%2 = nn.kv_append v %0[%i] cached = 0 : {X} -> {X}\n%3 = nn.kv_append v %1[%i] cached = 0 : {X} -> {X}"
    ))
}

#[test]
fn passes_run_in_order_and_are_seen() {
    let cx = IrContext::new();
    let mut module = parse(&cx, &two_equal());
    let mut pipeline = Pipeline::new();
    pipeline.add_builtin("cse").add("count", |root: Op| {
        let count = root.find::<nn::Softmax>().len();
        if count == 1 { Ok(()) } else { Err(format!("{count} left").into()) }
    });
    assert_eq!(pipeline.names(), ["cse", "count"]);
    let mut seen = Vec::new();
    let mut observe = |event: Event| {
        seen.push(match event {
            Event::Started { pass } => format!("+{pass}"),
            Event::Finished { pass, module } => {
                format!("-{pass} {}", module.op().find::<nn::Softmax>().len())
            }
        });
    };
    pipeline.run(&mut module, &mut observe).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(seen, ["+cse", "-cse 1", "+count", "-count 1"]);
}

#[test]
fn a_refusal_and_a_panic_name_the_pass() {
    let cx = IrContext::new();
    let mut module = parse(&cx, &two_equal());
    let mut refusing = Pipeline::new();
    refusing.add("fuse", |_| Err("not today".into()));
    let error = refusing.run(&mut module, &mut |_| {}).expect_err("refused");
    assert_eq!(error.to_string(), "pass fuse: not today");
    let mut panicking = Pipeline::new();
    panicking.add("fuse", |_| panic!("a hole of {} bytes", 3));
    let error = panicking.run(&mut module, &mut |_| {}).expect_err("caught");
    assert!(
        matches!(&error, IrError::Pass { pass, failure: PassFailure::Panic(text), .. } if pass == "fuse" && text == "a hole of 3 bytes"),
        "{error}"
    );
}

#[test]
fn a_pass_that_breaks_the_module_is_found_out() {
    let cx = IrContext::new();
    let mut module = parse(&cx, &two_equal());
    let mut pipeline = Pipeline::new();
    pipeline.add("break", |root: Op| {
        for append in root.find::<nn::KvAppend>() {
            let cx = root.context();
            append.op().set_attribute("cached", cx.i64(7));
        }
        Ok(())
    });
    let error = pipeline.run(&mut module, &mut |_| {}).expect_err("found out");
    assert!(
        error.to_string().starts_with(
            "verify after break:\nt.mlir:4:6: error: 'nn.kv_append' op inferred type(s) 'tensor<2x15x64xf32>'"
        ),
        "{error}"
    );
}

#[test]
fn an_unknown_builtin_is_named() {
    let cx = IrContext::new();
    let mut module = parse(&cx, &two_equal());
    let mut pipeline = Pipeline::new();
    pipeline.add_builtin("canonicalise");
    let error = pipeline.run(&mut module, &mut |_| {}).expect_err("no such pass");
    assert!(
        matches!(&error, IrError::Pipeline { text, message } if text == "canonicalise" && message.contains("does not refer to a registered pass")),
        "{error}"
    );
}

#[test]
fn pipeline_texts_split() {
    let names = |text| {
        parse_pipeline(text)
            .map(|passes| passes.into_iter().map(|pass| (pass.name, pass.options)).collect::<Vec<_>>())
    };
    assert_eq!(
        names("builtin.module(cse, fuse{kinds=a,b}, func.func(canonicalize))").expect("parses"),
        [("cse".into(), None), ("fuse".into(), Some("kinds=a,b".into())), ("func.func".into(), None)]
    );
    assert_eq!(names("").expect("empty"), []);
    assert!(names("cse(").is_err());
    assert!(names("cse,,fuse").is_err());
}

/// The example of the crate's documentation.
#[test]
fn half_of_twice_is_once() {
    let cx = IrContext::new();
    let body = format!(
        "%0 = nn.add %x, %x : {X}\n%1 = nn.scale %0 by 0.5 as \"output\" : {X}\n%2 = nn.kv_append k %1[%i] cached = 0 : {X} -> {X}"
    );
    let mut module = parse(&cx, &in_function(&body));
    let mut pipeline = Pipeline::new();
    pipeline.add_builtin("canonicalize").add("fold-half", |root| {
        for scale in root.find::<nn::Scale>() {
            let Some(add) = scale.x().defined_by::<nn::Add>() else { continue };
            if scale.by() != 0.5 || add.a() != add.b() {
                continue;
            }
            scale.op().replace_with(&[add.a()])?;
        }
        Ok(())
    });
    pipeline.run(&mut module, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    assert!(module.op().find::<nn::Scale>().is_empty());
    assert_eq!(module.op().find::<nn::KvAppend>()[0].x().block_argument().map(|(_, index)| index), Some(2));
}
