#include "cli/html_page.h"

#include <fmt/format.h>

#include "cli/svg_chart.h"

namespace fathom {
namespace {

constexpr std::string_view kStyle = R"(
:root{color-scheme:light dark;--bg:#fbfbfa;--card:#fff;--ink:#1c1e21;--dim:#686d75;--line:#e2e3e6;
--c0:#2563c9;--c1:#d9480f;--c2:#2b8a3e;--c3:#9c36b5;--c4:#b8860b;--c5:#0b7285;--c6:#c2255c;--c7:#5c5f66;--good:#2b8a3e;--bad:#c92a2a}
@media(prefers-color-scheme:dark){:root{--bg:#15171a;--card:#1d2024;--ink:#e6e7e9;--dim:#9aa0a8;--line:#343940;
--c0:#6ea8fe;--c1:#ff922b;--c2:#69db7c;--c3:#da77f2;--c4:#ffd43b;--c5:#3bc9db;--c6:#f783ac;--c7:#adb5bd;--good:#69db7c;--bad:#ff8787}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem clamp(.7rem,3vw,2rem) 3rem;max-width:1500px;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2rem 0 .6rem}h3{font-size:.95rem;margin:.8rem 0 .3rem}
.sub{color:var(--dim);margin:0 0 1rem}
.curves{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:.8rem}
figure,article{margin:0;padding:.7rem .8rem;background:var(--card);border:1px solid var(--line);border-radius:8px;min-width:0}
figcaption{font-weight:600}svg{display:block;width:100%;height:auto}
svg text{fill:var(--dim);font:11px system-ui,sans-serif}
.grid{stroke:var(--line)}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}.band{opacity:.22;stroke-width:.8}
.legend{display:flex;flex-wrap:wrap;gap:.1rem .9rem;font-size:.8rem;color:var(--dim);margin:.1rem 0 .2rem}
.key i{display:inline-block;width:18px;vertical-align:middle;margin-right:.35rem}.key b{color:var(--ink);font-weight:600}
.key{white-space:nowrap;max-width:100%;overflow:hidden;text-overflow:ellipsis}
.note{color:var(--dim);font-size:.8rem;margin:.2rem 0 0}
.wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card)}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.35rem .7rem;text-align:right;white-space:nowrap}th{color:var(--dim);font-weight:500}
tr>th:first-child{text-align:left;color:var(--ink)}tr+tr>*{border-top:1px solid var(--line)}
td.mean{font-weight:600}.summary{width:fit-content;max-width:100%}.summary tr:first-child>th{color:var(--ink);font-weight:600}.text{text-align:left;white-space:normal;min-width:16rem;overflow-wrap:anywhere}
dl{display:flex;flex-wrap:wrap;gap:.5rem;margin:0}dl div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.4rem .8rem}
dt{color:var(--dim);font-size:.8rem}dd{margin:0;font-weight:600;font-variant-numeric:tabular-nums}
@media(max-width:520px){svg text{font-size:14px}}
.facts tr>th:first-child{color:var(--dim);width:9rem}
.dot{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin-right:.45em}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:12.5px/1.45 ui-monospace,monospace;margin:.3rem 0;max-height:26rem;overflow:auto}
.prompt{color:var(--dim)}.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,400px),1fr));gap:.8rem}
.good{color:var(--good)}.bad{color:var(--bad)}article h3{margin:0 0 .3rem}
details{margin:.8rem 0}summary{cursor:pointer;color:var(--dim);margin-bottom:.4rem}
)";

}  // namespace

std::string html_page(std::string_view title, std::string_view window_title,
                      std::string_view subtitle, std::string_view body) {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
      "'unsafe-inline'\">\n"
      "<style>{}</style></head><body>\n<h1>{}</h1>\n<p class=\"sub\">{}</p>\n{}</body></html>\n",
      escape_html(window_title), kStyle, escape_html(title), escape_html(subtitle), body);
}

}  // namespace fathom
