# shellcheck shell=bash
# For tests/julia/run and examples/run, after bootstrap.sh: finds a Julia, or unpacks Debian 11's
# (Debian 12 has none) into build/julia/debian, beside the system, with the libraries that it was
# built with: under a later libunwind it crashes on its first exception.

# Sets `julia`; fails where there is none to be had.
need_julia() {
  local place=$PWD/build/julia found
  for found in "$(command -v julia || true)" "$place/bin/julia"; do
    if [ -x "$found" ] && julia_works "$found"; then
      julia=$found
      return
    fi
  done
  say "Unpacking Debian 11's Julia into build/julia"
  mkdir -p "$place"
  : >"$place/apt.log"
  quietly "$place/apt.log" unpack_julia "$place" || return 1
  julia=$place/bin/julia
  julia_works "$julia"
}

julia_works() { # JULIA
  [ "$("$1" --startup-file=no -e '
    f(x) = error(x)
    try; f(1); catch; print(VERSION >= v"1.5"); end' 2>/dev/null)" = true ]
}

unpack_julia() { # FOLDER
  local place=$1 root=$1/debian mirror apt package
  command -v apt-get >/dev/null || return 1
  # shellcheck disable=SC2016
  mirror=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT) $(CODENAME)' |
    awk '$2 == "main" && $3 !~ /-/ {print $1; exit}')
  [ -n "$mirror" ] || return 1
  rm -rf "$root"
  mkdir -p "$root" "$place"/apt/{lists,archives}/partial "$place/bin"
  : >"$place/apt/status" # as if nothing were installed: every library comes along
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bullseye main" \
    >"$place/apt/sources.list"
  apt=(env -C "$place/apt/archives" apt-get -q -y -o "Dir::Etc::sourcelist=$place/apt/sources.list"
    -o Dir::Etc::sourceparts=/dev/null -o "Dir::State=$place/apt" -o "Dir::Cache=$place/apt"
    -o "Dir::State::status=$place/apt/status" -o Debug::NoLocking=1 -o APT::Sandbox::User=)
  "${apt[@]}" update || return 1
  "${apt[@]}" install --no-install-recommends --download-only julia || return 1
  for package in "$place"/apt/archives/*.deb; do
    case ${package##*/} in
      libc6_* | libcrypt1_* | libgcc-s1_* | libstdc++6_*) ;; # the system's, with its loader
      dpkg_* | perl-base_* | tar_* | debconf_*) ;;
      *) dpkg-deb -x "$package" "$root" || return 1 ;;
    esac
  done
  rm -rf "$place/apt"
  cat >"$place/bin/julia" <<END
#!/bin/sh
# Debian 11's Julia with its own libraries.
for folder in "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu; do
  LD_LIBRARY_PATH=\$folder:\$folder/julia\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
done
export LD_LIBRARY_PATH
exec "$root/usr/bin/julia" "\$@"
END
  chmod +x "$place/bin/julia"
}
