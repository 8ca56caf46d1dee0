# The CUDA backend, or the table that stands in for it: sets RMSNORM_CUDA_SOURCES, RMSNORM_CUDART
# (the static CUDA runtime), RMSNORM_SYSTEM_LIBRARIES and RMSNORM_BUILD_CUDA (for build_info).
# FindCUDAToolkit is not used: CMake's own before 3.31 does not know CUDA 13.
if(RMSNORM_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
endif()
if(NOT RMSNORM_CUDA STREQUAL "AUTO")
  set(cuda ${RMSNORM_CUDA})
elseif(CMAKE_CUDA_COMPILER)
  set(cuda ON)
else()
  set(cuda OFF)
endif()

if(NOT cuda)
  message(STATUS "CUDA backend: off")
  set(RMSNORM_CUDA_SOURCES src/cuda/absent.cpp)
  set(RMSNORM_CUDART)
  set(RMSNORM_SYSTEM_LIBRARIES pthread m)
  set(RMSNORM_BUILD_CUDA "cuda=off")
  function(rmsnorm_cuda_options target)
  endfunction()
  return()
endif()

# OFF for now: enable_language would write the compiler's own default into the cache.
if(DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(architectures ${CMAKE_CUDA_ARCHITECTURES})
elseif(DEFINED ENV{CUDAARCHS})
  set(architectures $ENV{CUDAARCHS})
else()
  set(CMAKE_CUDA_ARCHITECTURES OFF)
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.4)
  message(FATAL_ERROR "CUDA ${CMAKE_CUDA_COMPILER_VERSION} is too old: 12.4 or later is needed")
endif()
if(NOT architectures)
  set(architectures 75-real 80-real 86-real 89-real 90)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND architectures 100-real 120)
  endif()
endif()
set(CMAKE_CUDA_ARCHITECTURES ${architectures})

find_library(RMSNORM_CUDART cudart_static REQUIRED NO_CACHE
  PATHS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} NO_DEFAULT_PATH)
set(RMSNORM_SYSTEM_LIBRARIES dl pthread rt m)
file(GLOB RMSNORM_CUDA_SOURCES CONFIGURE_DEPENDS src/cuda/*.cu src/cuda/*.cpp)
list(FILTER RMSNORM_CUDA_SOURCES EXCLUDE REGEX "/absent\\.cpp$")

string(REGEX MATCH "^[0-9]+\\.[0-9]+" version ${CMAKE_CUDA_COMPILER_VERSION})
string(REGEX REPLACE "-(real|virtual)" "" names "${architectures}")
list(JOIN names , names)
set(ptx ${architectures})
list(FILTER ptx EXCLUDE REGEX "-real$")
string(REGEX REPLACE "-virtual" "" ptx "${ptx}")
list(JOIN ptx , ptx)
set(RMSNORM_BUILD_CUDA "cuda=${version} arch=${names} ptx=${ptx}")
message(STATUS "CUDA backend: ${RMSNORM_BUILD_CUDA}")

function(rmsnorm_cuda_options target)
  set_target_properties(${target} PROPERTIES
    CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden
    CUDA_RUNTIME_LIBRARY Static CUDA_SEPARABLE_COMPILATION OFF)
  # Legacy launch: kernel stubs without function-local statics, whose guards would need libstdc++.
  # -Wno-parentheses: nvcc's own rewriting adds them.
  set(options -D__NV_LEGACY_LAUNCH
    -Xcompiler=-D__NV_LEGACY_LAUNCH,-Wall,-Wextra,-Wno-parentheses
    -Xcompiler=-fno-exceptions,-fno-rtti,-ffp-contract=off)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND options --compress-mode=size)  # a third of the size
  endif()
  list(LENGTH CMAKE_CUDA_ARCHITECTURES count)
  if(count GREATER 1)
    list(APPEND options --threads=2)  # architectures side by side
  endif()
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${options}>")
endfunction()
