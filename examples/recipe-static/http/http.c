#include "http.h"

#include <string.h>
#include <strings.h>

static int hex(char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
    if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
    return -1;
}

static int decode(const char *from, size_t size, char *to, size_t room) {
    size_t length = 0;
    for (size_t at = 0; at < size; at++) {
        char byte = from[at];
        if (byte == '?') break;
        if (byte == '%') {
            if (at + 2 >= size || hex(from[at + 1]) < 0 || hex(from[at + 2]) < 0) return 400;
            byte = (char)(hex(from[at + 1]) * 16 + hex(from[at + 2]));
            at += 2;
        }
        if (byte == '\0') return 400;
        if (length + 1 >= room) return 414;
        to[length++] = byte;
    }
    to[length] = '\0';
    return 0;
}

int http_read(const char *text, size_t size, struct http_request *request) {
    const char *end = memchr(text, '\n', size);
    if (end == NULL) return 400;
    memset(request, 0, sizeof *request);
    size_t line = (size_t)(end - text);
    if (line > 4 && memcmp(text, "GET ", 4) == 0) {
        text += 4, line -= 4;
    } else if (line > 5 && memcmp(text, "HEAD ", 5) == 0) {
        request->head = 1, text += 5, line -= 5;
    } else {
        return 405;
    }
    const char *blank = memchr(text, ' ', line);
    if (blank == NULL || text[0] != '/') return 400;
    int refused = decode(text, (size_t)(blank - text), request->path, sizeof request->path);
    if (refused) return refused;

    size -= (size_t)(end - text) + (size_t)(request->head ? 5 : 4) + 1;
    for (text = end + 1; size > 0;) {
        end = memchr(text, '\n', size);
        size_t length = end == NULL ? size : (size_t)(end - text);
        static const char name[] = "accept-encoding:";
        if (length > sizeof name - 1 && strncasecmp(text, name, sizeof name - 1) == 0) {
            for (size_t at = sizeof name - 1; at + 4 <= length; at++) {
                if (strncasecmp(text + at, "gzip", 4) == 0) request->gzip = 1;
            }
        }
        if (end == NULL) break;
        size -= length + 1;
        text = end + 1;
    }
    return 0;
}

int http_leaves(const char *path) {
    for (const char *at = path; (at = strstr(at, "..")) != NULL; at += 2) {
        if (at > path && at[-1] == '/' && (at[2] == '/' || at[2] == '\0')) return 1;
    }
    return 0;
}

const char *http_type(const char *name) {
    static const struct {
        const char *end, *type;
    } types[] = {
        {".html", "text/html; charset=utf-8"},
        {".css", "text/css; charset=utf-8"},
        {".txt", "text/plain; charset=utf-8"},
        {".svg", "image/svg+xml"},
    };
    size_t length = strlen(name);
    for (size_t at = 0; at < sizeof types / sizeof types[0]; at++) {
        size_t end = strlen(types[at].end);
        if (length > end && strcmp(name + length - end, types[at].end) == 0) return types[at].type;
    }
    return "application/octet-stream";
}

const char *http_reason(int status) {
    switch (status) {
        case 200: return "OK";
        case 400: return "Bad Request";
        case 404: return "Not Found";
        case 405: return "Method Not Allowed";
        case 414: return "URI Too Long";
        default: return "Internal Server Error";
    }
}
