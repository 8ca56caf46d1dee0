# Headers, libraries, and what finds them: the CMake package (rmsnorm::rmsnorm, rmsnorm::static) and
# pkg-config (rmsnorm, rmsnorm-static). Nothing of it names the place it was installed to.
include(CMakePackageConfigHelpers)
set(package ${CMAKE_INSTALL_LIBDIR}/cmake/rmsnorm)

install(FILES include/rmsnorm.h include/rmsnorm.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS rmsnorm rmsnorm_static EXPORT rmsnorm)
install(EXPORT rmsnorm NAMESPACE rmsnorm:: FILE rmsnorm-config.cmake DESTINATION ${package})
if(RMSNORM_BUILD_BENCH)
  install(TARGETS rmsnorm_bench)
endif()
# Before 1.0 a minor version may break source.
write_basic_package_version_file(rmsnorm-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/rmsnorm-config-version.cmake DESTINATION ${package})

file(RELATIVE_PATH prefix /prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig /prefix)
string(REGEX REPLACE "/$" "" prefix ${prefix})
list(TRANSFORM RMSNORM_SYSTEM_LIBRARIES PREPEND -l OUTPUT_VARIABLE system_libraries)
list(JOIN system_libraries " " system_libraries)
foreach(name rmsnorm rmsnorm-static)
  set(libraries "-L\${libdir} -lrmsnorm")
  set(private_libraries ${system_libraries})
  if(name STREQUAL "rmsnorm-static")
    set(libraries "\${libdir}/librmsnorm.a ${system_libraries}")
    set(private_libraries)
  endif()
  configure_file(src/build/rmsnorm.pc.in ${name}.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${name}.pc
    DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()
