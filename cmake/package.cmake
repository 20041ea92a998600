# cmake --install build/release, and cpack in build/release for a .deb: program, demo model, converter, launcher, docs.

include(GNUInstallDirs)
install(FILES models/demo/demo-q40.m models/demo/demo.t models/demo/README.md DESTINATION ${CMAKE_INSTALL_DATADIR}/dllama/demo)
install(PROGRAMS launch-glm.py DESTINATION ${CMAKE_INSTALL_DATADIR}/dllama)
file(CREATE_LINK ../${CMAKE_INSTALL_DATADIR}/dllama/launch-glm.py ${CMAKE_BINARY_DIR}/launch-glm.py SYMBOLIC)
install(FILES ${CMAKE_BINARY_DIR}/launch-glm.py DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY converter DESTINATION ${CMAKE_INSTALL_DATADIR}/dllama
    PATTERN "__pycache__" EXCLUDE PATTERN "*.pyc" EXCLUDE)
install(FILES README.md LICENSE CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs DESTINATION ${CMAKE_INSTALL_DOCDIR})

install(FILES cmake/bash-completion DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME dllama)

# A man page out of --help, where help2man is installed.
find_program(help2man_program help2man)
if(help2man_program)
    set(man_page ${CMAKE_BINARY_DIR}/dllama.1)
    add_custom_command(OUTPUT ${man_page}
        COMMAND ${help2man_program} --no-info --name ${PROJECT_DESCRIPTION} --output ${man_page} $<TARGET_FILE:dllama>
        DEPENDS dllama VERBATIM)
    add_custom_target(man ALL DEPENDS ${man_page})
    install(FILES ${man_page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
endif()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_CONTACT "the dllama project")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
# The libraries that the program is linked with, by dpkg-shlibdeps; Python is for the converter and the launcher.
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "python3, python3-venv")
include(CPack)
