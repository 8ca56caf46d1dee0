//! Finds librmsnorm, in this order: the folder that RMSNORM_LIB_DIR names, pkg-config, the feature
//! `vendored`. With the feature `dynamic-loading`, and on docs.rs, nothing is linked.
use std::env;
use std::path::Path;
use std::process::exit;

const NOT_FOUND: &str = "\
librmsnorm was not found: set RMSNORM_LIB_DIR to the folder of librmsnorm.so or librmsnorm.a, install \
it where pkg-config finds it, or enable the feature `vendored` (builds it with CMake) or \
`dynamic-loading` (opens it at run time)";

fn main() {
    for name in ["RMSNORM_LIB_DIR", "RMSNORM_STATIC", "DOCS_RS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if enabled("DYNAMIC_LOADING") || env::var_os("DOCS_RS").is_some() {
        return;
    }
    let prefers_static = env::var_os("RMSNORM_STATIC").is_some_and(|value| value != "0");
    let found = match env::var_os("RMSNORM_LIB_DIR") {
        Some(folder) => in_folder(Path::new(&folder), prefers_static),
        None => from_pkg_config(prefers_static).or_else(|problem| {
            vendored().unwrap_or_else(|| Err(format!("{NOT_FOUND}; pkg-config said: {problem}")))
        }),
    };
    if let Err(problem) = found {
        eprintln!("rmsnorm-sys: {problem}");
        exit(1);
    }
}

fn enabled(feature: &str) -> bool {
    env::var_os(format!("CARGO_FEATURE_{feature}")).is_some()
}

fn in_folder(folder: &Path, prefers_static: bool) -> Result<(), String> {
    let shared = folder.join("librmsnorm.so").exists();
    let archive = folder.join("librmsnorm.a").exists();
    if !shared && !archive {
        return Err(format!(
            "RMSNORM_LIB_DIR = {}, but there is neither librmsnorm.so nor librmsnorm.a",
            folder.display()
        ));
    }
    link(folder, archive && (prefers_static || !shared));
    Ok(())
}

/// The metadata reaches dependents as DEP_RMSNORM_LIB_DIR, for an rpath of theirs.
fn link(folder: &Path, as_archive: bool) {
    println!("cargo:rustc-link-search=native={}", folder.display());
    println!("cargo:lib_dir={}", folder.display());
    if as_archive {
        println!("cargo:rustc-link-lib=static=rmsnorm");
        for library in ["dl", "pthread", "rt", "m"] {
            println!("cargo:rustc-link-lib={library}");
        }
    } else {
        println!("cargo:rustc-link-lib=dylib=rmsnorm");
    }
}

fn from_pkg_config(prefers_static: bool) -> Result<(), String> {
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let parts: Vec<u32> = version.split('.').flat_map(str::parse).collect();
    let (low, high) = (
        format!("{}.{}", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1] + 1), // a minor version may break before 1.0
    );
    pkg_config::Config::new()
        .range_version(low.as_str()..high.as_str())
        .cargo_metadata(false)
        .env_metadata(true)
        .probe("rmsnorm")
        .map_err(|error| match error {
            pkg_config::Error::ProbeFailure { output, .. } => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                said.lines().next().unwrap_or("nothing").to_string()
            }
            other => one_line(&other.to_string()),
        })?;
    let folder = pkg_config::get_variable("rmsnorm", "libdir")
        .map_err(|error| one_line(&error.to_string()))?;
    link(Path::new(&folder), prefers_static);
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(not(feature = "vendored"))]
fn vendored() -> Option<Result<(), String>> {
    None
}

#[cfg(feature = "vendored")]
fn vendored() -> Option<Result<(), String>> {
    let sources =
        Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("librmsnorm");
    for part in ["CMakeLists.txt", "include", "src"] {
        println!("cargo:rerun-if-changed={}", sources.join(part).display());
    }
    if !sources.join("CMakeLists.txt").exists() {
        return Some(Err(format!("{} holds no sources", sources.display())));
    }
    let cuda = if enabled("VENDORED_CUDA") { "ON" } else { "OFF" };
    let built = cmake::Config::new(sources)
        .profile("Release") // whatever Rust's own profile is: its numerics are tested so
        .define("RMSNORM_CUDA", cuda)
        .define("RMSNORM_BUILD_BENCH", "OFF")
        .build_target("rmsnorm_static")
        .build();
    link(&built.join("build"), true);
    Some(Ok(()))
}
