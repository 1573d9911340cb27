// An origin on Node.js: says on standard output what it executes and which trailers it is sent, and answers 200. HTTP/1.1 as leniently as it can on the first
// port, HTTP/2 without TLS on the second.
import http from 'node:http';
import http2 from 'node:http2';

const [first, second] = process.argv.slice(1).map(Number);
function resolved(url) {
  try {
    return decodeURIComponent(new URL(url, 'http://h').pathname);
  } catch {
    return url;
  }
}
function execute(request, response) {
  const roles = Object.entries(request.headersDistinct ?? request.headers).filter(([name]) => name.replace('_', '-') === 'x-role');
  const host = request.headers.host ?? request.headers[':authority'] ?? '';
  const said = [request.method, request.url, resolved(request.url), host, roles.map(([, values]) => values).flat().join('|')];
  console.log(['seen', ...said].join('\t'));
  request.on('error', () => {});
  request.on('end', () => {
    for (const name of Object.keys(request.trailers)) console.log(`behind\t${name}`);
    response.end();
  });
  request.resume();
}
const plain = http.createServer({ insecureHTTPParser: true }, execute);
plain.on('upgrade', (request, socket) => socket.destroy());
plain.listen(first, '::', () => {
  const h2 = http2.createServer(execute);
  h2.on('sessionError', () => {});
  h2.listen(second, '::', () => console.log('serving'));
});
