//! Builds the kernel programs of `ebpf/` into `OUT_DIR/ferromesh.bpf.o`.
//!
//! `FERROMESH_BPF=FILE` uses a built object instead. Otherwise one of two toolchains is taken, whichever is there:
//! Debian's `rustc` with its precompiled `core` for BPF, or rustup's nightly with `rust-src`. Both need `bpf-linker`.
//! aya-build is not used: it insists on rustup and overwrites the target CPU, without which atomics have no result.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const TARGET: &str = "bpfel-unknown-none";
/// v3 has atomics that return a value; debug info becomes the BTF that maps are defined by.
const FLAGS: [&str; 4] = ["-Clinker=bpf-linker", "-Clink-arg=--btf", "-Cdebuginfo=2", "-Ctarget-cpu=v3"];
/// What cargo and rustup set for a build script, and what would steer the inner build to the outer compiler.
const INHERITED: [&str; 11] = [
    "CARGO",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];
const MISSING: &str = "no compiler for BPF found. One of these is needed:
  Debian:  apt-get install --no-install-recommends rustc-web cargo-web libstd-rust-web-dev-bpf
  rustup:  rustup toolchain install nightly --component rust-src
or an object built elsewhere: FERROMESH_BPF=FILE";
const NO_LINKER: &str = "bpf-linker not found in PATH or ~/.cargo/bin. To install it:
  rustup:  cargo install bpf-linker
  Debian:  apt-get install llvm-22-dev && LLVM_PREFIX=/usr/lib/llvm-22 LLVM_SYS_221_PREFIX=/usr/lib/llvm-22 \\
           cargo install bpf-linker --version 0.13.0 --no-default-features --features llvm-22
or use an object built elsewhere: FERROMESH_BPF=FILE";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            for line in problem.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=FERROMESH_BPF");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    let object = match env::var_os("FERROMESH_BPF") {
        Some(file) => {
            let file = PathBuf::from(file);
            println!("cargo::rerun-if-changed={}", file.display());
            file
        }
        None => build(&out)?,
    };
    let copy = out.join("ferromesh.bpf.o");
    // A new file: another target directory may have links to the one before. That there was none is fine.
    let _ = fs::remove_file(&copy);
    fs::copy(&object, copy).map(drop).map_err(|error| format!("kernel object {}: {error}", object.display()))
}

fn build(out: &Path) -> Result<PathBuf, String> {
    for source in ["ebpf/Cargo.toml", "ebpf/Cargo.lock", "ebpf/src", "abi/Cargo.toml", "abi/src"] {
        println!("cargo::rerun-if-changed={source}");
    }
    let target_dir = out.join("ebpf");
    let mut cargo = toolchain().ok_or(MISSING)?;
    let status = cargo
        .args(["build", "--release", "--locked", "--quiet", "--target", TARGET])
        .args(["--manifest-path", "ebpf/Cargo.toml", "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        .env("PATH", path_with_linker()?)
        .status()
        .map_err(|error| format!("{:?}: {error}", cargo.get_program()))?;
    if !status.success() {
        return Err(format!(
            "building the kernel programs failed ({status}); the compiler's messages are above"
        ));
    }
    Ok(target_dir.join(TARGET).join("release/ferromesh"))
}

/// A cargo that can compile for BPF.
fn toolchain() -> Option<Command> {
    let clean = |program| {
        let mut command = Command::new(program);
        for name in INHERITED {
            command.env_remove(name);
        }
        command
    };
    if Path::new("/usr/bin/cargo").exists() && Path::new("/usr/lib/rustlib").join(TARGET).exists() {
        let mut cargo = clean("/usr/bin/cargo");
        // aya-ebpf and we use inline assembly for BPF, which is unstable.
        cargo.env("RUSTC", "/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1");
        return Some(cargo);
    }
    let sysroot = clean("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output().ok()?;
    let source = Path::new(std::str::from_utf8(&sysroot.stdout).ok()?.trim())
        .join("lib/rustlib/src/rust/library/core");
    if !sysroot.status.success() || !source.exists() {
        return None;
    }
    let mut cargo = clean("rustup");
    cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
    Some(cargo)
}

/// `PATH`, extended by where `cargo install` puts things.
fn path_with_linker() -> Result<std::ffi::OsString, String> {
    let mut folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    if let Some(cargo_home) = env::var_os("CARGO_HOME") {
        folders.push(PathBuf::from(cargo_home).join("bin"));
    }
    if let Some(home) = env::var_os("HOME") {
        folders.push(PathBuf::from(home).join(".cargo/bin"));
    }
    if !folders.iter().any(|folder| folder.join("bpf-linker").exists()) {
        return Err(NO_LINKER.to_owned());
    }
    env::join_paths(folders).map_err(|error| format!("PATH: {error}"))
}
