{
  "targets": [
    {
      "target_name": "densecl",
      "sources": [
        "<!@(node scripts/nativeSources.mjs)"
      ],
      "include_dirs": ["native/third_party/libjpeg-turbo", "<!(node -p \"require('node-addon-api').include_dir\")"],
      "defines": ["NAPI_VERSION=8", "NAPI_CPP_EXCEPTIONS", "NODE_ADDON_API_DISABLE_DEPRECATED", "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS", "DENSECL_VERSION=<!(node -p \"require('./package.json').version\")"],
      # The flags of CMakeLists.txt in its order and none of node-gyp's own: a compiler's cache then has the objects of one for the other.
      "configurations": {"Release": {"cflags!": ["-O3", "-fno-omit-frame-pointer"]}},
      "cflags!": ["-fno-exceptions", "-pthread", "-Wall", "-Wextra", "-Wno-unused-parameter", "-m64", "-fPIC"],
      "cflags_c": ["-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-O3", "-w"],
      "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-std=gnu++20", "-O2"],
      "cflags_cc": ["-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", "-Wall", "-Wextra", "-std=c++17"],
      "xcode_settings": {
        "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
        "GCC_ENABLE_CPP_RTTI": "YES",
        "CLANG_CXX_LANGUAGE_STANDARD": "c++17",
        "OTHER_CPLUSPLUSFLAGS": ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
      }
    }
  ]
}
