# Used by `make setup` only, as CMAKE_PROJECT_rvm_perception_INCLUDE: the CMake files in the ROS wheels name an include
# folder of the machine they were built on, and CMake refuses to generate. Drops the folders that do not exist.
function(drop_missing_include_folders)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT folders)
      continue()
    endif()
    set(existing)
    foreach(folder IN LISTS folders)
      if(folder MATCHES "^\\$<" OR EXISTS "${folder}")
        list(APPEND existing "${folder}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${existing}")
  endforeach()
endfunction()

# The targets appear while CMakeLists.txt runs, so wait for its end.
cmake_language(DEFER CALL drop_missing_include_folders)
