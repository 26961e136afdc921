/* Drives libxlutil for tests/peers/test_libxlutil.py: many inputs in one process.
 *
 * stdin: records of one kind byte ('c' config, 'd' disk, 'r' rate), a 32-bit count and that
 * many strings, each a 32-bit length and its bytes (integers in host order).
 *   c: the text, then the keys to read back;  d: one specification;  r: one rate.
 * stdout, per record: "ok" or "error HEX" (the report), then lines of results, then ".".
 * Every string is printed in hex; "-" is a null pointer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libxlutil.h>

struct text {
    char *data;
    uint32_t length;
};

static uint32_t take_count(void)
{
    uint32_t count;

    if (fread(&count, sizeof(count), 1, stdin) != 1)
        exit(3);
    return count;
}

static struct text take_text(void)
{
    struct text text = { .length = take_count() };

    text.data = calloc(1, text.length + 1);
    if (text.length && fread(text.data, text.length, 1, stdin) != 1)
        exit(3);
    return text;
}

static void put_hex(const char *data, size_t length)
{
    if (!data) {
        putchar('-');
        return;
    }
    putchar('x');
    for (size_t i = 0; i < length; i++)
        printf("%02x", (unsigned char)data[i]);
}

static void put_string(const char *name, const char *value)
{
    printf("%s ", name);
    put_hex(value, value ? strlen(value) : 0);
    putchar('\n');
}

static void put_verdict(int rc, const char *report, size_t length)
{
    if (!rc) {
        puts("ok");
        return;
    }
    printf("error ");
    put_hex(report, length);
    putchar('\n');
}

static void put_value(XLU_Config *config, XLU_ConfigValue *value)
{
    XLU_ConfigList *list;
    char *string;

    if (xlu_cfg_value_type(value) == XLU_STRING) {
        if (xlu_cfg_value_get_string(config, value, &string, 1))
            exit(4);
        put_hex(string, strlen(string));
        putchar(' ');
        return;
    }
    if (xlu_cfg_value_get_list(config, value, &list, 1))
        exit(4);
    printf("[ ");
    for (int i = 0; (value = xlu_cfg_get_listitem2(list, i)); i++)
        put_value(config, value);
    printf("] ");
}

static void put_key(XLU_Config *config, const char *key)
{
    const char *string;
    XLU_ConfigList *list;
    long number;
    int count;

    if (!xlu_cfg_get_list(config, key, &list, &count, 1)) {
        XLU_ConfigValue *value;

        printf("list [ ");
        for (int i = 0; (value = xlu_cfg_get_listitem2(list, i)); i++)
            put_value(config, value);
        puts("]");
    } else if (!xlu_cfg_get_string(config, key, &string, 1)) {
        put_string("string", string);
    } else {
        puts("absent");
    }
    if (!xlu_cfg_get_long(config, key, &number, 1))
        printf("long %ld\n", number);
    else
        puts("long -");
}

static void put_disk(const libxl_device_disk *disk)
{
    put_string("target", disk->pdev_path);
    put_string("vdev", disk->vdev);
    put_string("backend", disk->backend_domname);
    put_string("script", disk->script);
    printf("format %s\n", libxl_disk_format_to_string(disk->format));
    printf("backendtype %s\n", libxl_disk_backend_to_string(disk->backend));
    printf("specification %s\n", libxl_disk_specification_to_string(disk->specification));
    printf("readwrite %d\n", disk->readwrite);
    printf("removable %d\n", disk->removable);
    printf("is_cdrom %d\n", disk->is_cdrom);
    printf("direct_io_safe %d\n", disk->direct_io_safe);
    printf("discard %s\n", libxl_defbool_is_default(disk->discard_enable)
                               ? "-"
                               : libxl_defbool_val(disk->discard_enable) ? "1" : "0");
}

static void answer(int kind)
{
    uint32_t count = take_count();
    struct text *texts = calloc(count + 1, sizeof(*texts));
    char *report_data = NULL;
    size_t report_length = 0;
    FILE *report = open_memstream(&report_data, &report_length);
    XLU_Config *config = xlu_cfg_init(report, "FILE");
    int rc;

    for (uint32_t i = 0; i < count; i++)
        texts[i] = take_text();
    errno = 0; /* libxlutil reads it after strtoull without clearing it */
    if (kind == 'c') {
        rc = xlu_cfg_readdata(config, texts[0].data, texts[0].length);
        fflush(report);
        put_verdict(rc, report_data, report_length);
        for (uint32_t i = 1; !rc && i < count; i++)
            put_key(config, texts[i].data);
    } else if (kind == 'd') {
        const char *spec = texts[0].data;
        libxl_device_disk disk;

        libxl_device_disk_init(&disk);
        rc = xlu_disk_parse(config, 1, &spec, &disk);
        fflush(report);
        put_verdict(rc, report_data, report_length);
        if (!rc)
            put_disk(&disk);
        libxl_device_disk_dispose(&disk);
    } else {
        libxl_device_nic nic;

        libxl_device_nic_init(&nic);
        rc = xlu_vif_parse_rate(config, texts[0].data, &nic);
        fflush(report);
        put_verdict(rc, report_data, report_length);
        if (!rc)
            printf("rate %llu %lu\n", (unsigned long long)nic.rate_bytes_per_interval,
                   (unsigned long)nic.rate_interval_usecs);
        libxl_device_nic_dispose(&nic);
    }
    puts(".");
    xlu_cfg_destroy(config);
    fclose(report);
    free(report_data);
    for (uint32_t i = 0; i < count; i++)
        free(texts[i].data);
    free(texts);
}

int main(void)
{
    int kind;

    while ((kind = getchar()) != EOF) {
        answer(kind);
        fflush(stdout);
    }
    return 0;
}
