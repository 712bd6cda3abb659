/* The module: its types, its state, and which methods have a shortcut. */

#include "_core.h"

static const Entry entries[] = {
                                                {"Buffer", "__enter__", 1, handle_enter},
    {"Buffer", "__exit__", 4, handle_exit},     {"Buffer", "view", -1, handle_view},
    {"Buffer", "address", -1, handle_address},  {"Front", "alloc", 1, front_alloc},
    {"Front", "alloc_nowait", 1, front_alloc_nowait}, {"Front", "lease", 1, front_lease},
    {"Lease", "__aenter__", 1, lease_enter},    {"Lease", "__aexit__", 4, lease_exit},
    {NULL, NULL, 0, NULL}};

/* The state of the module that a type, or a type that it derives from, belongs to. */
Core *core_of(PyTypeObject *type)
{
    PyObject *module = PyType_GetModuleByDef(type, &core_module);
    return module == NULL ? NULL : PyModule_GetState(module);
}

/* A new object of a type that takes no arguments; a subclass with an `__init__` of its own may take some. */
PyObject *core_plain_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    if (type->tp_init == PyBaseObject_Type.tp_init &&
        (PyTuple_GET_SIZE(args) || (kwargs != NULL && PyDict_GET_SIZE(kwargs)))) {
        PyErr_Format(PyExc_TypeError, "%s() takes no arguments", type->tp_name);
        return NULL;
    }
    return type->tp_alloc(type, 0);
}

/* The method `python`, named `name`, of a type, with its shortcut; or itself if there is none. */
static PyObject *core_with_shortcut(PyObject *module, PyObject *args)
{
    PyTypeObject *type;
    const char *name;
    PyObject *python;
    if (!PyArg_ParseTuple(args, "O!sO:with_shortcut", &PyType_Type, &type, &name, &python))
        return NULL;
    Core *core = PyModule_GetState(module);
    if (type == core->handle && strcmp(name, "__del__") == 0) {
        Py_XSETREF(core->lost, Py_NewRef(python));
        return PyObject_GetAttrString((PyObject *)type, name);
    }
    if (type == core->handle && strcmp(name, "free") == 0) {
        PyObject *doc = PyObject_GetAttrString(python, "__doc__");
        Py_XSETREF(core->direct_doc, doc == NULL ? NULL : PyUnicode_FromFormat("free($self, /)\n--\n\n%S", doc));
        Py_XDECREF(doc);
        const char *text = core->direct_doc == NULL ? NULL : PyUnicode_AsUTF8(core->direct_doc);
        if (text == NULL)
            return NULL;
        Py_XSETREF(core->free, Py_NewRef(python));
        core->direct = (PyMethodDef){"free", handle_free_directly, METH_NOARGS, text};
        return PyDescr_NewMethod(type, &core->direct);
    }
    if (type == core->front && strcmp(name, "alloc") == 0)
        Py_XSETREF(core->slowly, Py_NewRef(python));
    const char *dot = strrchr(type->tp_name, '.');
    for (const Entry *entry = entries; entry->type != NULL; entry++)
        if (strcmp(entry->type, dot == NULL ? type->tp_name : dot + 1) == 0 && strcmp(entry->name, name) == 0)
            return method_new(core, type, entry, python);
    return Py_NewRef(python);
}

/* `_views.lease_view` of a slot. */
static PyObject *core_lease_view(PyObject *module, PyObject *source)
{
    Core *core = PyModule_GetState(module);
    if (!PyObject_TypeCheck(source, core->slot)) {
        PyErr_Format(PyExc_TypeError, "a Slot expected, not %s", Py_TYPE(source)->tp_name);
        return NULL;
    }
    PyObject *view = slot_view((Slot *)source);
    if (view != NULL && ((Slot *)source)->ground == NULL) { /* given up while the view was made */
        Py_DECREF(view);
        return slot_view((Slot *)source);
    }
    if (view != NULL)
        slot_export((Slot *)source, view);
    return view;
}

static int core_exec(PyObject *module)
{
    Core *core = PyModule_GetState(module);
    core->module = module;
    struct {
        PyTypeObject **place;
        PyType_Spec *spec;
        PyTypeObject *base;
        const char *name;
    } types[] = {{&core->method, &method_spec, NULL, NULL},
                 {&core->bound, &bound_spec, NULL, NULL},
                 {&core->getter, &getter_spec, NULL, NULL},
                 {&core->ground, &ground_spec, NULL, NULL},
                 {&core->anchor, &anchor_spec, NULL, NULL},
                 {&core->slot, &slot_spec, NULL, "Slot"},
                 {&core->single, &single_spec, NULL, "EmergencySlot"},
                 {&core->magazine, &magazine_spec, &PyList_Type, "Magazine"},
                 {&core->origin, &origin_spec, NULL, "Origin"},
                 {&core->handle, &handle_spec, NULL, "Buffer"},
                 {&core->seen, &seen_spec, NULL, "SeenBuffer"},
                 {&core->emergency, &emergency_spec, NULL, "EmergencyBuffer"},
                 {&core->front, &front_spec, NULL, "Front"},
                 {&core->lease, &lease_spec, NULL, "Lease"},
                 {&core->ready, &ready_spec, NULL, "Ready"}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        PyTypeObject **place = types[i].place, *base = types[i].base;
        if (place == &core->seen || place == &core->emergency)
            base = core->handle;
        else if (place == &core->single)
            base = core->slot;
        PyObject *type = PyType_FromModuleAndSpec(module, types[i].spec, (PyObject *)base);
        *place = (PyTypeObject *)type;
        if (type == NULL || (types[i].name != NULL && PyModule_AddObjectRef(module, types[i].name, type)))
            return -1;
    }
    if ((core->settle = PyUnicode_InternFromString("settle")) == NULL ||
        (core->let_go = PyUnicode_InternFromString("_let_go")) == NULL ||
        (core->view = PyUnicode_InternFromString("view")) == NULL ||
        (core->alloc = PyUnicode_InternFromString("alloc")) == NULL)
        return -1;
    return 0;
}

static int core_traverse(PyObject *module, visitproc visit, void *arg)
{
    Core *core = PyModule_GetState(module);
    Py_VISIT(core->method);
    Py_VISIT(core->bound);
    Py_VISIT(core->getter);
    Py_VISIT(core->ground);
    Py_VISIT(core->anchor);
    Py_VISIT(core->slot);
    Py_VISIT(core->single);
    Py_VISIT(core->magazine);
    Py_VISIT(core->origin);
    Py_VISIT(core->handle);
    Py_VISIT(core->seen);
    Py_VISIT(core->emergency);
    Py_VISIT(core->front);
    Py_VISIT(core->lease);
    Py_VISIT(core->ready);
    Py_VISIT(core->lost);
    Py_VISIT(core->free);
    Py_VISIT(core->slowly);
    for (int i = 0; i < core->n_handles; i++)
        Py_VISIT(Py_TYPE(core->handles[i])); /* they have kept their type */
    for (int i = 0; i < core->n_leases; i++)
        Py_VISIT(Py_TYPE(core->leases[i]));
    for (int i = 0; i < core->n_bounds; i++)
        Py_VISIT(Py_TYPE(core->bounds[i]));
    return 0;
}

static int core_clear(PyObject *module)
{
    Core *core = PyModule_GetState(module);
    handle_clear_kept(core);
    lease_clear_kept(core);
    bound_clear_kept(core);
    ready_clear_kept(core);
    Py_CLEAR(core->method);
    Py_CLEAR(core->bound);
    Py_CLEAR(core->getter);
    Py_CLEAR(core->ground);
    Py_CLEAR(core->anchor);
    Py_CLEAR(core->slot);
    Py_CLEAR(core->single);
    Py_CLEAR(core->magazine);
    Py_CLEAR(core->origin);
    Py_CLEAR(core->handle);
    Py_CLEAR(core->seen);
    Py_CLEAR(core->emergency);
    Py_CLEAR(core->front);
    Py_CLEAR(core->lease);
    Py_CLEAR(core->ready);
    Py_CLEAR(core->lost);
    Py_CLEAR(core->free);
    Py_CLEAR(core->slowly);
    Py_CLEAR(core->settle);
    Py_CLEAR(core->let_go);
    Py_CLEAR(core->view);
    Py_CLEAR(core->alloc);
    return 0;
}

static void core_free(void *module)
{
    Core *core = PyModule_GetState((PyObject *)module);
    if (core != NULL) {
        core_clear((PyObject *)module);
        Py_CLEAR(core->direct_doc);
    }
}

static PyMethodDef core_methods[] = {METHOD("with_shortcut", core_with_shortcut, METH_VARARGS),
                                     METHOD("lease_view", core_lease_view, METH_O), {NULL, NULL, 0, NULL}};
static PyModuleDef_Slot core_slots[] = {{Py_mod_exec, core_exec}, {0, NULL}};
struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aslab._fastpath._core",
    .m_doc = "The fast path in C: see _core.h.",
    .m_size = sizeof(Core),
    .m_methods = core_methods,
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
    .m_free = core_free,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
