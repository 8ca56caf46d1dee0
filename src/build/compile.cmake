# How C++ is compiled. -ffp-contract=off: the numerics promise counts on each rounding as written.
# Only src/cpu/isa/*.cpp get -m flags: other code runs before the CPU has been asked what it has.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_BUILD_RPATH_USE_ORIGIN ON)  # a build folder runs wherever it is copied to

function(rmsnorm_compile_options target)
  target_compile_features(${target} PRIVATE cxx_std_17)
  set_target_properties(${target} PROPERTIES CXX_VISIBILITY_PRESET hidden)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:
    -Wall -Wextra -fno-exceptions -fno-rtti -ffp-contract=off
    $<$<CONFIG:Release>:-O2>>)
endfunction()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)  # GCC 12 finds it in its own intrinsics
  set(RMSNORM_BUILD_ISAS generic,avx2,avx512)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(RMSNORM_BUILD_ISAS generic,neon)
else()
  set(RMSNORM_BUILD_ISAS generic)
endif()
foreach(isa generic avx2 avx512 neon)  # those for other processors compile to nothing
  set_source_files_properties(src/cpu/isa/${isa}.cpp PROPERTIES
    COMPILE_OPTIONS "$<$<CONFIG:Release,RelWithDebInfo>:-O3>;${${isa}}")
endforeach()
