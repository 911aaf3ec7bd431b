/* Serves a directory on port 8080, one process for each connection. A file that has `NAME.gz` beside it is sent as that. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "http.h"

enum { HEAD = 8192, PORT = 8080 };

static void say(int to, const char *text, size_t size) {
    while (size > 0) {
        ssize_t sent = write(to, text, size);
        if (sent <= 0) _exit(1);
        text += sent, size -= (size_t)sent;
    }
}

static void answer(int to, int status, const char *type, const char *encoding, off_t size) {
    char head[512];
    int length = snprintf(head, sizeof head,
                          "HTTP/1.0 %d %s\r\nContent-Type: %s\r\n%sContent-Length: %lld\r\nVary: Accept-Encoding\r\n\r\n",
                          status, http_reason(status), type, encoding, (long long)size);
    say(to, head, (size_t)length);
}

static int file_of(int root, const struct http_request *request, char *name, size_t room, const char **encoding) {
    size_t length = strlen(request->path);
    const char *index = request->path[length - 1] == '/' ? "index.html" : "";
    snprintf(name, room, "%s%s", request->path + 1, index);
    *encoding = "";
    if (request->gzip) {
        char packed[HTTP_PATH + 32];
        snprintf(packed, sizeof packed, "%s.gz", name);
        int file = openat(root, packed, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            *encoding = "Content-Encoding: gzip\r\n";
            return file;
        }
    }
    return openat(root, name, O_RDONLY | O_CLOEXEC);
}

static void serve(int root, int to) {
    char text[HEAD];
    size_t size = 0;
    while (size < sizeof text) {
        ssize_t got = read(to, text + size, sizeof text - size);
        if (got <= 0) break;
        size += (size_t)got;
        if (size >= 4 && memcmp(text + size - 4, "\r\n\r\n", 4) == 0) break;
    }
    struct http_request request;
    int status = http_read(text, size, &request);
    char name[HTTP_PATH + 16];
    const char *encoding = "";
    struct stat about;
    int file = -1;
    if (status == 0) {
        file = http_leaves(request.path) ? -1 : file_of(root, &request, name, sizeof name, &encoding);
        status = file >= 0 && fstat(file, &about) == 0 && S_ISREG(about.st_mode) ? 200 : 404;
    }
    if (status != 200) {
        const char *reason = http_reason(status);
        answer(to, status, "text/plain", "", (off_t)strlen(reason));
        say(to, reason, strlen(reason));
        return;
    }
    answer(to, status, http_type(name), encoding, about.st_size);
    for (ssize_t got; !request.head && (got = read(file, text, sizeof text)) > 0;) say(to, text, (size_t)got);
}

/* What has to hold before anybody gets this program. */
static int check(void) {
    static const struct {
        const char *text, *path;
        int status, gzip, leaves;
    } cases[] = {
        {"GET / HTTP/1.0\r\n\r\n", "/", 0, 0, 0},
        {"GET /a%20b?c HTTP/1.1\r\nHost: x\r\nAccept-Encoding: br, GZIP\r\n\r\n", "/a b", 0, 1, 0},
        {"HEAD /../etc/passwd HTTP/1.0\r\n\r\n", "/../etc/passwd", 0, 0, 1},
        {"GET /a..b/... HTTP/1.0\r\n\r\n", "/a..b/...", 0, 0, 0},
        {"GET /%00 HTTP/1.0\r\n\r\n", NULL, 400, 0, 0},
        {"GET /%4 HTTP/1.0\r\n\r\n", NULL, 400, 0, 0},
        {"POST / HTTP/1.0\r\n\r\n", NULL, 405, 0, 0},
        {"GET", NULL, 400, 0, 0},
    };
    int wrong = 0;
    for (size_t at = 0; at < sizeof cases / sizeof cases[0]; at++) {
        struct http_request request;
        int status = http_read(cases[at].text, strlen(cases[at].text), &request);
        int right = status == cases[at].status &&
                    (cases[at].path == NULL ||
                     (strcmp(request.path, cases[at].path) == 0 && request.gzip == cases[at].gzip &&
                      http_leaves(request.path) == cases[at].leaves));
        if (!right) fprintf(stderr, "case %zu: status %d, path `%s`\n", at, status, request.path), wrong = 1;
    }
    return wrong;
}

int main(int count, char **words) {
    if (count == 2 && strcmp(words[1], "--check") == 0) return check();
    if (count != 2) {
        fprintf(stderr, "usage: server DIRECTORY | --check\n");
        return 2;
    }
    int root = open(words[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    if (root < 0 || bind(listener, (struct sockaddr *)&here, sizeof here) < 0 || listen(listener, 64) < 0) {
        fprintf(stderr, "%s: %s\n", words[1], strerror(errno));
        return 1;
    }
    signal(SIGCHLD, SIG_IGN);
    for (;;) {
        int to = accept(listener, NULL, NULL);
        if (to < 0) continue;
        pid_t child = fork();
        if (child == 0) {
            alarm(10);
            serve(root, to);
            _exit(0);
        }
        close(to);
    }
}
