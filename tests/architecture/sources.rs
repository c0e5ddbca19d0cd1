//! Reads the crates' sources into top-level modules and the paths that each of them names.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Name in the table, name in Rust, and folder of each crate, lowest first. A crate imports only crates before it.
pub(crate) const CRATES: [(&str, &str, &str); 4] = [
    ("image", "siphon_image", "fsd/image/src"),
    ("overlay", "siphon_overlay", "overlay/src"),
    ("fsd", "siphon_fsd", "fsd/src"),
    ("cli", "siphon", "cli/src"),
];

/// A path as written, its segments in order: `["std", "env", "var"]`. A macro call ends in `!`: `["println!"]`.
pub(crate) type NamedPath = Vec<String>;

/// The paths that each top-level module names, by the module's name in the table (`image::squashfs`); a crate's root
/// file stands under the crate's own name. Paths into the workspace begin with the crate's name in the table.
pub(crate) type Modules = BTreeMap<String, BTreeSet<NamedPath>>;

/// Reads all sources below `repository`.
pub(crate) fn read_crates(repository: &Path) -> Modules {
    let mut modules = Modules::new();
    for (name, _, folder) in CRATES {
        read_folder(&repository.join(folder), &[name.to_owned()], &mut modules);
    }
    modules
}

fn read_folder(folder: &Path, module: &[String], modules: &mut Modules) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut inner = module.to_vec();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if !matches!(stem, "lib" | "main" | "mod") {
            inner.push(stem.to_owned());
        }
        if path.is_dir() {
            read_folder(&path, &inner, modules);
        } else if stem != "tests" && path.extension().is_some_and(|extension| extension == "rs") {
            // A tests.rs is what its parent declares as `#[cfg(test)] mod tests;`.
            add_source(&std::fs::read_to_string(&path).unwrap(), &inner, modules);
        }
    }
}

/// Adds what `text`, the source of `module` (crate first), names.
pub(crate) fn add_source(text: &str, module: &[String], modules: &mut Modules) {
    let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", module.join("::")));
    if file.attrs.iter().any(is_for_tests) {
        return;
    }
    let mut paths = BTreeSet::new();
    for item in file.items {
        add_item(item, module, &mut paths);
    }
    modules.entry(module[..module.len().min(2)].join("::")).or_default().extend(paths);
}

fn add_item(item: syn::Item, module: &[String], paths: &mut BTreeSet<NamedPath>) {
    if attributes(&item).iter().any(is_for_tests) {
        return;
    }
    if let syn::Item::Mod(syn::ItemMod { ident, content: Some((_, items)), .. }) = item {
        let inner = [module, &[ident.to_string()]].concat();
        items.into_iter().for_each(|item| add_item(item, &inner, paths));
        return;
    }
    let mut written = Vec::new();
    scan(item.to_token_stream(), &[], &mut written);
    paths.extend(written.into_iter().map(|path| absolute(path, module)));
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        _ => &[],
    }
}

fn is_for_tests(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("cfg") && attribute.meta.to_token_stream().to_string().replace(' ', "") == "cfg(test)"
}

/// Collects the paths in `tokens`. `prefix` is what stands before the braces of a `use a::b::{..}`.
fn scan(tokens: TokenStream, prefix: &[String], paths: &mut Vec<NamedPath>) {
    let mut path = prefix.to_vec();
    let mut tokens = tokens.into_iter().peekable();
    // Whether the path so far ends in `::` and so goes on with the next token.
    let mut open = !prefix.is_empty();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(ident) => {
                if !open {
                    finish(&mut path, prefix, paths);
                }
                let mut name = ident.to_string();
                open = false;
                if matches!(tokens.peek(), Some(TokenTree::Punct(punct)) if punct.as_char() == '!') {
                    name.push('!');
                }
                path.push(name);
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' && is_colon(tokens.peek()) => {
                tokens.next();
                open = true;
            }
            TokenTree::Group(group) if open && group.delimiter() == Delimiter::Brace => {
                scan(group.stream(), &path, paths);
                path = prefix.to_vec();
                open = !prefix.is_empty();
            }
            TokenTree::Group(group) => {
                finish(&mut path, prefix, paths);
                open = !prefix.is_empty();
                scan(group.stream(), &[], paths);
            }
            _ => {
                finish(&mut path, prefix, paths);
                open = !prefix.is_empty();
            }
        }
    }
    finish(&mut path, prefix, paths);
}

fn finish(path: &mut NamedPath, prefix: &[String], paths: &mut Vec<NamedPath>) {
    if path.len() > prefix.len() {
        paths.push(std::mem::replace(path, prefix.to_vec()));
    }
}

fn is_colon(token: Option<&TokenTree>) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':')
}

/// Replaces `crate`, `self`, `super` and the crates' Rust names at the head of a path by the name in the table.
fn absolute(path: NamedPath, module: &[String]) -> NamedPath {
    let mut base = module.to_vec();
    let mut rest = path.as_slice();
    match rest.first().map(String::as_str) {
        Some("crate") => base.truncate(1),
        Some("self") if rest.len() > 1 => {}
        Some("super") => {
            while rest.first().is_some_and(|segment| segment == "super") {
                base.pop();
                rest = &rest[1..];
            }
            return [&base, rest].concat();
        }
        Some(first) => {
            let Some((name, ..)) = CRATES.iter().find(|(_, rust_name, _)| first == *rust_name) else {
                return path;
            };
            base = vec![(*name).to_owned()];
        }
        None => return path,
    }
    [&base, &rest[1..]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths_of(text: &str, module: &[&str]) -> Vec<String> {
        let mut modules = Modules::new();
        let module: Vec<_> = module.iter().map(ToString::to_string).collect();
        add_source(text, &module, &mut modules);
        modules.into_values().flatten().map(|path| path.join("::")).collect()
    }

    #[test]
    fn grouped_and_renamed_imports_are_taken_apart() {
        let paths =
            paths_of("use crate::tree::{self, Node, attr::{A, B as C}}; use siphon_image::path;", &["fsd", "fs"]);

        for expected in
            ["fsd::tree::self", "fsd::tree::Node", "fsd::tree::attr::A", "fsd::tree::attr::B", "image::path"]
        {
            assert!(paths.contains(&expected.to_owned()), "{expected} is missing from {paths:?}");
        }
    }

    #[test]
    fn super_leads_to_the_module_above() {
        assert_eq!(paths_of("use super::super::cache::Key;", &["fsd", "blob", "range"]), ["fsd::cache::Key", "use"]);
    }

    #[test]
    fn a_path_inside_a_macro_or_an_expression_counts() {
        let paths = paths_of("fn f() { println!(\"{}\", std::env::var(\"X\").is_ok()); }", &["image", "tree"]);

        assert!(paths.contains(&"std::env::var".to_owned()), "{paths:?}");
        assert!(paths.contains(&"println!".to_owned()), "{paths:?}");
    }

    #[test]
    fn comments_strings_and_tests_do_not_count() {
        let text =
            "//! std::env\n/// tokio::Session\nconst A: &str = \"std::net\"; #[cfg(test)] mod tests { use std::env; }";

        let paths = paths_of(text, &["image", "tree"]);

        assert!(!paths.iter().any(|path| path.contains("std::") || path.contains("tokio")), "{paths:?}");
    }
}
